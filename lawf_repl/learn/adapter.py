"""A LoRA adapter on the live model, through peft: found targets, on and off, scaled, saved, loaded, removed.

The base weights are never touched and never merged: with the adapter off the model is the base, bit for bit. peft is imported
where an adapter comes to be: an answer of the base alone does not wait for it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

from lawf_repl.config import Settings
from lawf_repl.engine.reach import Reach, set_reach
from lawf_repl.errors import ModelError, first_line

if TYPE_CHECKING:
    from peft import PeftModel

Weights = dict[str, torch.Tensor]
REWRITTEN = (".gate", ".gate_proj", ".up_proj", ".down_proj")  # of mixtures of experts, by peft/utils/transformers_weight_conversion.py
# A router decides which experts run: training it changes what nobody corrected. dt_proj's weight is read past the layer's forward,
# so a LoRA on it would do nothing.
UNFIT = frozenset({"router", "gate", "shared_expert_gate", "dt_proj"})
MAMBA_UNFIT = frozenset({"out_proj", "conv1d"})  # refused by peft, tuners_utils.py, for ...
MAMBA_TYPES = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})


class Adapter:
    """The one adapter of a session. `base` is the model it is injected into and that everything else keeps calling."""

    def __init__(self, peft: PeftModel, from_file: bool = False, mark: Sequence[int] = ()) -> None:
        """`mark` are the ids from which on in a text it acts; without them it acts everywhere."""
        self._peft = peft
        self.from_file = from_file
        self.base: Any = peft.get_base_model()
        self.reach = Reach(mark, [matrix for layer in self.layers().values() for matrix in layer.lora_A.values()]) if mark else None
        self.on = True
        set_reach(self.base, self.reach)
        self._peft.eval()  # no dropout in training either: the reference was computed without

    @classmethod
    def fresh(cls, model: Any, settings: Settings, name: str, mark: Sequence[int] = ()) -> Adapter:
        """An untrained adapter: A random from the seed, B zero, so that it changes nothing yet."""
        targets = find_targets(model, settings.layers)
        with _all_or_nothing(model):
            try:
                peft = _injected(model, targets, settings, name)
            except _Elsewhere:
                # For mixtures of experts peft turns such names into the experts of all layers: attention alone is what can be named.
                targets = [target for target in targets if not target.endswith(REWRITTEN)]
                peft = _injected(model, targets, settings, name)
            # In half precision small steps would round away: the LoRA itself is kept in float32.
            for parameter in peft.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            return cls(peft, mark=mark)

    @classmethod
    def load(cls, model: Any, folder: str | Path) -> Adapter:
        """A saved adapter. Raises ModelError where the folder holds none, or one for another model."""
        folder = Path(folder)
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(f"no adapter at {folder}: expected a folder with adapter_config.json and adapter_model.safetensors")
        if not (folder / "adapter_model.safetensors").is_file():
            raise ModelError(f"no adapter at {folder}: adapter_model.safetensors is missing (other formats are not read)")
        try:
            with _all_or_nothing(model):
                return cls(*_loaded(model, folder))
        except (RuntimeError, ValueError, KeyError, OSError, TypeError, AttributeError, SafetensorError) as error:
            raise ModelError(f"the adapter at {folder} does not fit this model: {first_line(error)}") from error

    def switch(self, on: bool) -> None:
        """Turn the adapter on or off for every later forward."""
        tuner: Any = self._peft.base_model
        if on:
            tuner.enable_adapter_layers()
        else:
            tuner.disable_adapter_layers()
        self.on = on
        set_reach(self.base, self.reach if on else None)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base inside the block. Parameters lose requires_grad inside it: no training step may happen here."""
        was = self.on
        self.switch(False)
        try:
            yield
        finally:
            self.switch(was)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable LoRA matrices; made trainable again if a switch froze them."""
        found = [parameter for name, parameter in self._peft.named_parameters() if "lora_" in name]
        for parameter in found:
            parameter.requires_grad_(True)
        return found

    def layers(self) -> dict[str, Any]:
        """The layers that carry a LoRA, by their path in peft's model."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {path: module for path, module in self._peft.named_modules() if isinstance(module, BaseTunerLayer) and hasattr(module, "lora_A")}

    def rank_of(self, path: str) -> int:
        """Rows of a layer's A."""
        return int(next(iter(self.layers()[path].lora_A.values())).weight.shape[0])

    def directions(self) -> dict[str, torch.Tensor]:
        """The matrix A (rank, d) of each layer."""
        return {path: next(iter(layer.lora_A.values())).weight.detach().clone() for path, layer in self.layers().items()}

    @torch.no_grad()
    def set_directions(self, directions: dict[str, torch.Tensor]) -> None:
        """Put a matrix (rank, d) in place of the A of each layer named; B stays."""
        layers = self.layers()
        for path, rows in directions.items():
            next(iter(layers[path].lora_A.values())).weight.copy_(rows)

    def outward(self) -> list[torch.nn.Parameter]:
        """The matrices B, from the LoRA's inside to the layers' outputs."""
        return [next(iter(layer.lora_B.values())).weight for layer in self.layers().values()]

    def snapshot(self) -> Weights:
        """A copy of the LoRA weights."""
        return {name: p.detach().clone() for name, p in self._peft.named_parameters() if "lora_" in name}

    @torch.no_grad()
    def restore(self, weights: Weights, scale: float = 1.0) -> None:
        """Put a snapshot back, its effect multiplied by `scale` (B is scaled, so a saved adapter is a plain one)."""
        for name, parameter in self._peft.named_parameters():
            if name in weights:
                parameter.copy_(weights[name] * scale if "lora_B" in name else weights[name])

    def save(self, folder: str | Path) -> None:
        """Write a standard peft directory: adapter_config.json and adapter_model.safetensors."""
        self._peft.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        (Path(folder) / "README.md").unlink(missing_ok=True)  # an empty template of peft's
        path = Path(folder) / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config["target_modules"], list):  # a set that peft writes in another order each time; a pattern is one string
            config["target_modules"].sort()
        if self.reach is not None:  # while it is here, lawf masks it itself: peft's own way needs to be told where in every forward
            config["alora_invocation_tokens"] = list(self.reach.mark)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def remove(self) -> None:
        """Take the adapter out of the model; what is left is bit-equal to the base."""
        set_reach(self.base, None)
        self._peft.unload()


def read_weights(model: Any, folder: str | Path) -> Weights:
    """The LoRA weights of a saved adapter, as `snapshot` gives them; the model is as it was. Raises ModelError as `Adapter.load` does."""
    adapter = Adapter.load(model, folder)
    try:
        return adapter.snapshot()
    finally:
        adapter.remove()


@contextmanager
def _all_or_nothing(model: Any) -> Iterator[None]:
    """Whatever ends the body early, an interrupt too, every layer that got a LoRA inside is the original again.

    Half an adapter would be served as the base.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    before, whole = {path for path, _ in model.named_modules()}, False
    try:
        yield
        whole = True
    finally:
        for path, module in [] if whole else list(model.named_modules()):
            if path in before and isinstance(module, BaseTunerLayer):
                parent, _, own = path.rpartition(".")
                setattr(model.get_submodule(parent), own, module.get_base_layer())


def _loaded(model: Any, folder: Path) -> tuple[PeftModel, bool, list[int]]:
    """`model` with the LoRA of a folder, True for its being from a file, and its mark; as Adapter takes them.

    Raises ModelError where it is none, or does not fit tensor for tensor.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise ModelError(f"the adapter at {folder} is no LoRA: expected peft_type LORA, found {config.get('peft_type')}")
    more = [name for name in ("modules_to_save", "trainable_token_indices") if config.get(name)]
    if more:
        raise ModelError(f"the adapter at {folder} replaces whole parts of the model ({more[0]}): expected LoRA matrices alone")
    mark = config.get("alora_invocation_tokens") or []
    if not isinstance(mark, list) or not all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in mark):
        raise ModelError(f"the adapter at {folder} is damaged: expected alora_invocation_tokens to be a list of token ids")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = LoraConfig.from_pretrained(str(folder))
        own.alora_invocation_tokens = None
        peft = PeftModel.from_pretrained(model, str(folder), is_trainable=False, config=own)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        odd = set(file.keys()) ^ set(get_peft_model_state_dict(peft, save_embedding_layers=False))
    if odd:  # peft only warns, and what is missing stays as it was made
        raise ModelError(f"the adapter at {folder} does not fit this model: {len(odd)} of its tensors are missing or have no place, "
                         f"such as {min(odd)[:120]}")
    return peft, True, mark


class _Elsewhere(Exception):
    """peft put a LoRA where none was asked for, or not where it was."""


def _injected(model: Any, targets: list[str], settings: Settings, name: str) -> PeftModel:
    """`model` with an untrained LoRA at exactly `targets`. Raises ModelError where peft refuses, _Elsewhere where it takes others."""
    from peft import LoraConfig, get_peft_model

    rank = settings.rank or rank_for(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none",
                        target_modules=targets, base_model_name_or_path=name)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(settings.seed)
        try:
            peft = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"{type(model).__name__} cannot carry a LoRA: {first_line(error)}") from error
    for own in peft.peft_config.values():
        own.base_model_name_or_path = name  # peft puts the folder there that the model was read from
    found = sorted(path.removeprefix("base_model.model.").removesuffix(".lora_A") for path, _ in peft.named_modules() if path.endswith(".lora_A"))
    if found == sorted(targets):
        return peft
    peft.unload()
    if not any(target.endswith(REWRITTEN) for target in targets):
        odd = sorted(set(found) ^ set(targets))
        raise ModelError(f"{type(model).__name__} cannot carry a LoRA: of the layers asked for, peft treats these otherwise: {', '.join(odd[:4])}")
    raise _Elsewhere


def rank_for(cases: int) -> int:
    """The rank where none is set: 4, doubled until it is no less than the number of cases.

    Measured on 30 corrections of the demo world trained at once: drift 0.0036 nats at rank 4, 0.0020 at 16, 0.0006 at 32.
    """
    rank = 4
    while rank < cases:
        rank *= 2
    return rank


def find_targets(model: Any, layers: str) -> list[str]:
    """Full names of the linear layers that get a LoRA, found in the decoder's layer list: never lm_head, embeddings, a vision tower or a router.

    "upper" takes the upper half of the layers only, "all" every one. Raises ModelError, by the name of the architecture,
    where no layer list with linear layers is found.
    """
    unfit = UNFIT | (MAMBA_UNFIT if getattr(model.config, "model_type", None) in MAMBA_TYPES else frozenset())
    for path, stack in _layer_lists(model):
        first = len(stack) // 2 if layers == "upper" and len(stack) > 1 else 0
        names = [f"{path}.{number}.{name}" for number in range(first, len(stack)) for name, child in stack[number].named_modules()
                 if isinstance(child, torch.nn.Linear | Conv1D) and name.rpartition(".")[2] not in unfit and "experts." not in name]
        if names:
            return names
    raise ModelError(f"{type(model).__name__} cannot be trained: no linear layers were found in its decoder's list of layers; "
                     f"expected a decoder such as Qwen3ForCausalLM")


def _layer_lists(model: Any) -> Iterator[tuple[str, torch.nn.ModuleList]]:
    """Path and modules of what may be the decoder's layers: lists inside it of the length that its config names."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(module) for module in decoder.modules()}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and id(module) in inside:
            yield path, module


def layers_below(adapter: Adapter) -> list[torch.nn.Module]:
    """The decoder layers before the first that carries a LoRA; none where a LoRA stands elsewhere too."""
    stack, first, alone = _carrying(adapter)
    return stack[:first] if alone else []


def layers_above(adapter: Adapter) -> list[torch.nn.Module]:
    """The decoder layers from the first that carries a LoRA on."""
    stack, first, _ = _carrying(adapter)
    return stack[first:]


def _carrying(adapter: Adapter) -> tuple[list[torch.nn.Module], int, bool]:
    """The decoder's layers, the number of the first with a LoRA, and whether all LoRA is in these layers."""
    carrying = list(adapter.layers())
    for path, stack in _layer_lists(adapter.base):
        numbers = [int(name.split(f"{path}.", 1)[1].split(".")[0]) for name in carrying if f"{path}." in name]
        if numbers:
            return list(stack), min(numbers), len(numbers) == len(carrying)
    return [], 0, False
