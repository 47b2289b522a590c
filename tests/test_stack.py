"""Layers as one operation give what the model's own modules and autograd give, and step aside wherever something else is meant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lawf_repl.config import Settings
from lawf_repl.engine import products
from lawf_repl.engine.layout import lay_out
from lawf_repl.learn import layer as layers_written
from lawf_repl.learn import stack
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.basis import Moments
from lawf_repl.learn.batch import Batch, completion_logits, make_batch
from lawf_repl.learn.layer import Recompute
from lawf_repl.learn.lower import Lower
from lawf_repl.learn.packed import Packed
from tests.architecture_zoo import ARCHITECTURES

PADDED = [((1, 6, 7, 11, 12), (8, 9, 10)), ((1, 6), (7, 8, 9)), ((5, 4, 3, 2), (1,))]
EVEN = [((1, 6, 7), (8, 9)), ((3, 2), (4, 5, 6))]
ALONE = [((1, 6, 7, 11, 12), (8, 9, 10))]
SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3}


def qwen3() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))


def qwen2() -> Any:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))  # its queries, keys and values have biases
    for layer in model.model.layers:
        for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(module.bias)
    return model


def llama() -> Any:
    rotation = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 4}, rope_parameters=rotation, attention_bias=True, mlp_bias=True))


FAMILIES = {"qwen3": qwen3, "qwen2": qwen2, "llama": llama}


def trained(name: str, layers: str = "upper", rank: int = 4) -> Adapter:
    """An adapter that does something, of which B alone learns."""
    torch.manual_seed(0)
    model: Any = FAMILIES[name]().eval()
    lay_out(model)
    adapter = Adapter.fresh(model, Settings(layers=layers, rank=rank), name)
    adapter.restore({key: 0.2 * torch.randn_like(value) for key, value in adapter.snapshot().items()})
    outward(adapter)
    return adapter


def outward(adapter: Adapter) -> list[torch.nn.Parameter]:
    wanted = adapter.outward()
    for parameter in adapter.parameters():
        parameter.requires_grad_(any(parameter is one for one in wanted))
    return wanted


def run(adapter: Adapter, lower: Lower, batch: Batch, wanted: list[torch.nn.Parameter]) -> None:
    """States and gradients of a forward are those of the model's own."""
    expected = completion_logits(adapter.base, batch)
    toward = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * toward).sum(), wanted, allow_unused=True)
    found = lower.logits(batch)
    assert torch.allclose(found, expected, atol=2e-5 * float(expected.detach().abs().max()))
    own = torch.autograd.grad((found * toward).sum(), wanted, allow_unused=True)
    for one, other in zip(own, gradients, strict=True):
        assert one is None or one.is_contiguous()
        assert (one is None or not float(one.abs().max())) if other is None else (
            one is not None and torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max())))
    with torch.no_grad():
        assert torch.allclose(lower.logits(batch), expected, atol=2e-5 * float(expected.abs().max()))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each time that a stack was run, whether gradients were wanted."""
    runs: list[bool] = []
    own = stack.Stack.states

    def states(self: stack.Stack, packed: Packed, room: float = math.inf) -> torch.Tensor:
        runs.append(torch.is_grad_enabled())
        return own(self, packed, room)

    monkeypatch.setattr(stack.Stack, "states", states)
    return runs


@pytest.mark.parametrize("by", ["onednn", "mkl", "mkl, columns"])
@pytest.mark.parametrize("rows", [PADDED, EVEN, ALONE], ids=["padded", "even", "alone"])
@pytest.mark.parametrize("layers", ["upper", "all"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_states_and_gradients_are_those_of_the_models_own_modules(name: str, layers: str, rows: Any, by: str, counted: list[bool],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "onednn" and not products.onednn_works():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: by == "onednn")
    if by == "mkl, columns":
        monkeypatch.setattr(products, "LARGE", 0)
    adapter = trained(name, layers)
    lower, batch, wanted = Lower(adapter), make_batch(rows, adapter.base.device), outward(adapter)
    for _ in range(3):
        run(adapter, lower, batch, wanted)
    assert counted.count(True) >= 2, "once the layers below have been run"
    for parameter in wanted:  # nothing that was kept hangs on the weights
        parameter.data += 0.1 * torch.randn_like(parameter)
    for matrix in adapter.layers().values():
        matrix.lora_A["default"].weight.data += 0.1
    run(adapter, lower, batch, wanted)
    lower.forget(batch)
    assert not lower._packed and not lower._states


def test_states_below_are_kept_once(counted: list[bool]) -> None:
    adapter = trained("qwen3")
    lower, batch = Lower(adapter), make_batch(PADDED, adapter.base.device)
    with torch.no_grad():
        lower.states(batch)
        lower.states(batch)
    assert counted and not lower._states and list(lower._packed) == [id(batch)]
    packed = lower._packed[id(batch)][1]
    assert len(packed.states) == int(batch.mask.sum()) < batch.ids.numel()


def test_it_steps_aside_where_something_looks_on_or_something_else_learns(counted: list[bool]) -> None:
    adapter = trained("qwen3")
    lower, batch, wanted = Lower(adapter), make_batch(PADDED, adapter.base.device), outward(adapter)
    run(adapter, lower, batch, wanted)
    run(adapter, lower, batch, wanted)
    layer = next(iter(adapter.layers().values()))
    counted.clear()
    seen: list[torch.Size] = []
    handle = layer.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    run(adapter, lower, batch, wanted)
    handle.remove()
    assert seen and not counted
    run(adapter, lower, batch, adapter.parameters())  # A learns too
    assert counted == [False], "where no gradient is wanted it makes no difference"
    counted.clear()
    outward(adapter)
    with adapter.off(), torch.no_grad():
        expected = completion_logits(adapter.base, batch)
        assert torch.allclose(lower.logits(batch), expected, atol=1e-5 * float(expected.abs().max())) and counted.pop() is False
        with torch.enable_grad():  # of what? nothing of the adapter is in force
            assert torch.allclose(lower.logits(batch), expected, atol=1e-5 * float(expected.abs().max())) and not counted
    outward(adapter)  # switched on again, all of it learns
    run(adapter, lower, batch, wanted)
    assert True in counted


@pytest.mark.parametrize("rows", [PADDED, EVEN], ids=["padded", "even"])
@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("layers", ["upper", "all"])
def test_without_room_the_lowest_layers_are_computed_again(layers: str, name: str, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = trained(name, layers)
    lower, batch, wanted = Lower(adapter), make_batch(rows, adapter.base.device), outward(adapter)
    run(adapter, lower, batch, wanted)
    found = lower._stack
    tokens, count, times = int(batch.mask.sum()), len(found.layers), {"_look": 0, "_wide": 0, "__call__": 0}

    def counting(part: str) -> Any:
        own = getattr(layers_written.Layer, part)

        def counted(self: Any, *given: Any, **named: Any) -> torch.Tensor:
            times[part] += 1
            result: torch.Tensor = own(self, *given, **named)
            return result

        return counted

    for part in times:
        monkeypatch.setattr(layers_written.Layer, part, counting(part))
    sizes = [found.layers[0].keeps(again) for again in Recompute]
    assert sizes == sorted(sizes, reverse=True)
    whole, below, attention = found.kept(tokens), count - 1, 4 * tokens * (sizes[0] - sizes[1])
    for room, looked, widened, run_whole in ((whole, 0, 0, 0), (whole - 1, 1, 0, 0), (whole - below * attention, below, 0, 0),
                                             (whole - below * attention - 1, below, 1, 0), (0, below, below, below)):
        lower.again.room = room
        times.update(_look=0, _wide=0, __call__=0)
        run(adapter, lower, batch, wanted)  # with a gradient and without, and some of it once more
        assert times == {"_look": 2 * count + looked, "_wide": 2 * count + widened, "__call__": 2 * count + run_whole}, room
    lower.again.room, lower.again.every = whole, True
    times.update(__call__=0)
    run(adapter, lower, batch, wanted)
    assert times["__call__"] == 2 * count + below
    for room in range(0, whole, 1000):
        plan = found.plan(tokens, room)
        assert plan == sorted(plan, reverse=True) and not plan[-1]
        assert 4 * tokens * sum(layer.keeps(again) for layer, again in zip(found.layers, plan, strict=True)) <= room or set(plan[:-1]) == {3}
        assert all(more <= less for more, less in zip(found.plan(tokens, room + 1000), plan, strict=True))


def test_a_stack_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = trained("qwen3")
    monkeypatch.setattr(layers_written, "_turn", lambda x, cos, sin: x)
    lower, batch, wanted = Lower(adapter), make_batch(PADDED, adapter.base.device), outward(adapter)
    for _ in range(3):
        run(adapter, lower, batch, wanted)
    assert not lower._stack.works


@pytest.mark.parametrize("odd", ["mistral", "gpt2", "half", "apart", "part", "act", "mark", "scale"])
def test_other_models_and_adapters_are_left_to_their_own_modules(odd: str) -> None:
    if odd in ("mistral", "gpt2"):
        adapter = Adapter.fresh(ARCHITECTURES[odd](), Settings(), odd)
    else:
        model = qwen3().eval()
        if odd != "apart":  # weights that do not lie side by side
            lay_out(model)
        if odd == "act":
            model.model.layers[2].mlp.act_fn = torch.nn.GELU()
        adapter = Adapter.fresh(model.bfloat16() if odd == "half" else model, Settings(), odd, mark=(5,) if odd == "mark" else ())
        if odd == "part":
            mlp = model.model.layers[3].mlp
            mlp.up_proj = mlp.up_proj.base_layer
        if odd == "scale":
            model.model.layers[3].self_attn.k_proj.scaling["default"] *= 2
    assert not stack.Stack(adapter.base, list(adapter.base.model.layers)[2:] if odd != "gpt2" else list(adapter.base.transformer.h)).works


@pytest.mark.parametrize("place", ["embed_tokens", "lm_head"])
def test_a_lora_elsewhere_in_the_model_is_not_passed_by(place: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False)
    model = Qwen3ForCausalLM(config).eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    peft: Any = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj", place], r=2))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(str(tmp_path), save_embedding_layers=False)
    fresh: Any = Qwen3ForCausalLM(config).eval()
    fresh.load_state_dict(weights)
    lay_out(fresh)
    adapter, batch = Adapter.load(fresh, tmp_path), make_batch(PADDED, fresh.device)
    lower = Lower(adapter)
    for on in (False, True, False, True):
        adapter.switch(on)
        with torch.no_grad():
            expected = completion_logits(fresh, batch)
            assert torch.allclose(lower.logits(batch), expected, atol=2e-5 * float(expected.abs().max())), on


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_batch_without_a_completion_has_no_states() -> None:
    adapter = trained("qwen3")
    lower, device = Lower(adapter), adapter.base.device
    lower.states(make_batch(PADDED, device))
    assert lower.states(make_batch([((1, 2, 3), ())], device)).shape == (0, 32)


@pytest.mark.parametrize("name", ["model.layers.2.mlp", "model.layers.3", "model.norm", "model.embed_tokens", "model.layers.3.self_attn.q_norm"])
def test_a_hook_on_any_module_is_not_passed_by(name: str) -> None:
    adapter = trained("qwen3")
    lower, batch, wanted = Lower(adapter), make_batch(PADDED, adapter.base.device), outward(adapter)
    run(adapter, lower, batch, wanted)
    works = [lower._stack.works]
    handle = adapter.base.get_submodule(name).register_forward_hook(lambda module, given, out: out * 1.1 if isinstance(out, torch.Tensor) else out)
    works.append(lower._stack.works)
    handle.remove()
    assert [*works, lower._stack.works] == [True, False, True]


def test_what_was_noted_holds_on_to_no_whole_input(counted: list[bool]) -> None:
    adapter = trained("qwen3", "all")
    moments, batch = Moments(adapter, 1000), make_batch(PADDED, adapter.base.device)
    sample = moments.sample(moments.draw(batch.mask))
    with adapter.off():
        Lower(adapter).read(batch, sample)
    assert sample._last is None and len(sample.inputs) == 4 * 4


@pytest.mark.parametrize("rows", [PADDED, EVEN], ids=["padded", "even"])
@pytest.mark.parametrize("again", list(Recompute))
def test_no_more_is_kept_than_it_says(again: Recompute, rows: Any) -> None:
    adapter = trained("qwen3", "all", rank=16)
    batch, own = make_batch(rows * 5, adapter.base.device), stack.Stack(adapter.base, adapter.base.model.layers[:3])
    packed = own.pack(batch)
    kept: list[Any] = []
    own._run(packed, kept, [again] * 3)
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for entry in kept
                for part in (entry if isinstance(entry, tuple) else (entry,)) for part in (part if isinstance(part, list) else [part])}
    matrices = {a.untyped_storage().data_ptr() for entry in kept if isinstance(entry, tuple) and len(entry) == 3 for a in entry[:2]}
    found = sum(size for place, size in storages.items() if place not in matrices)
    said = 4 * len(packed.states) * sum(layer.keeps(again) for layer in own.layers)
    assert said <= found <= 1.06 * said * batch.ids.numel() / len(packed.states)  # attention's is padded; a number more for each norm


def test_what_was_kept_is_used_once() -> None:
    adapter = trained("qwen3")
    lower, batch, wanted = Lower(adapter), make_batch(EVEN, adapter.base.device), outward(adapter)
    run(adapter, lower, batch, wanted)
    states = lower.states(batch)
    torch.autograd.grad(states.sum(), wanted, retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(states.sum(), wanted)
