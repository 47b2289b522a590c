"""Is this the base that an adapter was made for, does the adapter fit it, and does it do anything at all?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

from lawf_repl.engine.base import Engine
from lawf_repl.errors import ExportError, first_line
from lawf_repl.export.source import Source
from lawf_repl.measure.answers import weights_sha256 as session_sha256

SAMPLES = 256                # numbers of every weight that the hash is made from: training changes nearly all of them
PREFIX = "base_model.model."  # of peft's tensor names
NOT_VERIFIED = "not verified: "  # begins what is said of a check that could not be made


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: whether it holds, and what was found, in one line."""

    what: str
    ok: bool
    detail: str

    @property
    def verified(self) -> bool:
        """Whether it was checked at all; what was not does not hold either."""
        return not self.detail.startswith(NOT_VERIFIED)


def base_fingerprint(engine: Engine) -> dict[str, str]:
    """What lawf.json records of a base: that of a session, and a hash of the weights. The adapter may be in or out."""
    return engine.fingerprint() | {"weights_sha256": weights_sha256(engine.model)}


def weights_sha256(model: torch.nn.Module) -> str:
    """A hash of the weights without an adapter's: of each its name, shape, and as float32 numbers spread evenly over it.

    The same for a checkpoint in bfloat16 whether it is loaded as bfloat16 or as float32.
    """
    digest = hashlib.sha256()
    for name, weight in sorted((name.replace(".base_layer", ""), weight) for name, weight in model.named_parameters() if "lora_" not in name):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.device.type != "meta" and weight.numel():
            step = max(1, weight.numel() // SAMPLES)
            places = torch.arange(0, weight.numel(), step, device=weight.device)[:SAMPLES]
            some = weight.detach()[torch.unravel_index(places, weight.shape)].reshape(-1).float()  # however it lies in memory, no more is read
            digest.update(some.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def match_base(source: Source, engine: Engine, folder: Path) -> Finding:
    """Whether the loaded base is the one that the adapter belongs to: by hash where one is known, else by names and shapes alone."""
    wrong = misfit(engine, folder)
    if wrong:
        return Finding("base", False, wrong)
    known, found = source.base, engine.fingerprint()
    named = known.get("id") or "the base that it was made for"
    if known.get("weights_sha256"):
        if known["weights_sha256"] == weights_sha256(engine.model):
            return Finding("base", True, f"{engine.name}: the same weights (sha256)")
        other = f"; it was made in {known.get('dtype')}, try --dtype {known.get('dtype')}" if known.get("dtype") != engine.dtype else ""
        return Finding("base", False, f"{engine.name} has other weights than {named} (sha256){other}")
    for what in ("config", "tokenizer"):
        if known.get(f"{what}_sha256") and known[f"{what}_sha256"] != found[f"{what}_sha256"]:
            return Finding("base", False, f"{engine.name} has another {what} than {named} (sha256)")
    if source.weights and known.get("dtype") == engine.dtype:
        same = source.weights == session_sha256(engine.model)
        return Finding("base", same, f"{engine.name}: the same weights, config and tokenizer (sha256)" if same else
                       f"{engine.name} has other weights than {named} (sha256)")
    if known.get("config_sha256"):
        more = "of its weights nothing is recorded"
        if source.weights:
            more = f"its weights were recorded in {known.get('dtype')}: with --dtype {known.get('dtype')} they are compared, too"
        return Finding("base", True, f"{engine.name}: the same config and tokenizer (sha256); {more}")
    return Finding("base", True, f"{engine.name}: names and shapes fit; no hash is recorded, so another base of the same shape would pass")


def match_file(source: Source) -> Finding:
    """Whether the adapter's weights are those that its lawf.json describes."""
    assert source.adapter is not None
    same = hashlib.sha256((source.adapter / "adapter_model.safetensors").read_bytes()).hexdigest() == source.sha256
    return Finding("file", same, "adapter_model.safetensors is the one that lawf.json describes (sha256)" if same
                   else "adapter_model.safetensors is not the one that lawf.json describes (sha256)")


def misfit(engine: Engine, folder: Path) -> str:
    """One line on why an adapter cannot be this base's; empty where it can."""
    wrong = misfits(engine.model, folder)
    more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
    return f"{engine.name} is not this adapter's base: {wrong[0]}{more}" if wrong else ""


def misfits(model: Any, folder: Path) -> list[str]:
    """What of an adapter's tensors has no place in the model: a line for each, by name and shape."""
    modules = {name.replace(".base_layer", ""): module for name, module in model.named_modules()}
    out = []
    for name, shape in shapes(folder).items():
        path, mark, side = name.removeprefix(PREFIX).partition(".lora_")
        if not mark:
            continue  # not a LoRA's: loading it names it
        module = modules.get(path)
        if module is None or not isinstance(getattr(module, "weight", None), torch.Tensor):
            out.append(f"it has no layer {path}")
            continue
        sizes = tuple(module.weight.shape)
        inside, outside = (module.in_features, module.out_features) if hasattr(module, "in_features") \
            else sizes if isinstance(module, Conv1D) else sizes[::-1]
        have, want = (shape[-1], inside) if side.startswith("A") else (shape[0], outside)
        if have != want:
            out.append(f"{path} has {'inputs' if side.startswith('A') else 'outputs'} of width {want}, the adapter's are {have}")
    return out


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of an adapter's tensors. Raises ExportError where there is no file of them, or it is damaged."""
    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} cannot be read: {first_line(error)}") from error
    if not found:
        raise ExportError(f"{path} holds no tensors: it is no adapter")
    return found


def effect(folder: Path) -> Finding:
    """Whether the adapter can change anything: a LoRA does through its B, which is zero where nothing was trained."""
    zero, norms = [], 0
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if "lora_B" in name or "lora_embedding_B" in name:
                weight = file.get_tensor(name)
                if not bool(torch.isfinite(weight).all()):
                    return Finding("effect", False, f"{name.removeprefix(PREFIX)} holds numbers that are not finite")
                norms += 1
                if not bool(weight.any()):
                    zero.append(name.removeprefix(PREFIX))
    if norms == len(zero):
        return Finding("effect", False, f"none: every B of the LoRA is zero ({norms} tensors), so that the model is its base")
    if zero:
        return Finding("effect", True, f"{norms - len(zero)} of {norms} layers change something; B is zero in the others, such as {zero[0]}")
    return Finding("effect", True, f"all {norms} layers change something")
