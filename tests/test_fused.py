"""A layer and its LoRA as one operation are, in value and gradients, what peft and autograd make of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lawf_repl.config import Settings
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import completion_logits, forward, make_batch
from lawf_repl.learn.fused import Fused
from tests.architecture_zoo import ARCHITECTURES, MORE

ROWS = [((1, 6, 7, 11, 12), (8, 9, 10)), ((1, 6), (7, 8, 9))]


def trained(model: Any) -> Adapter:
    adapter = Adapter.fresh(model, Settings(layers="all"), "tiny")
    torch.manual_seed(1)
    adapter.restore({name: 0.1 * torch.randn_like(value) for name, value in adapter.snapshot().items()})
    return adapter


@pytest.mark.parametrize("outward", [True, False])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_values_and_gradients_are_pefts(name: str, outward: bool) -> None:
    adapter = trained((ARCHITECTURES | MORE)[name]())
    batch = make_batch(ROWS, adapter.base.device)
    parameters = adapter.parameters()
    for parameter in parameters:  # B alone, as a training begins, or both
        parameter.requires_grad_(not outward or any(parameter is one for one in adapter.outward()))
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    expected = completion_logits(adapter.base, batch)
    toward = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * toward).sum(), wanted, allow_unused=True)
    with Fused(adapter).in_place():
        found = completion_logits(adapter.base, batch)
        own = torch.autograd.grad((found * toward).sum(), wanted, allow_unused=True)
        with torch.no_grad():
            assert torch.allclose(completion_logits(adapter.base, batch), expected, atol=1e-5 * float(expected.detach().abs().max()))
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.detach().abs().max()))
    for one, other in zip(own, gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    with adapter.off(), torch.no_grad():
        base = forward(adapter.base, batch)
        with Fused(adapter).in_place():
            assert torch.equal(forward(adapter.base, batch), base), "bit for bit"
    assert not any("forward" in module.__dict__ for module in adapter.base.modules())


def test_the_usual_layers_are_fused_and_odd_ones_are_left_alone() -> None:
    adapter = trained(ARCHITECTURES["qwen3"]())
    assert len(Fused(adapter).layers) == len(adapter.layers()) > 0
    assert not Fused(trained(ARCHITECTURES["gpt2"]())).layers, "their weights lie the other way round"
    model: Any = ARCHITECTURES["qwen3"]()
    half = trained(model.to(torch.bfloat16))
    assert not Fused(half).layers, "the LoRA is kept in float32"
    layer = next(iter(adapter.layers().values()))
    layer.base_layer.register_forward_hook(lambda module, given, out: out)
    assert len(Fused(adapter).layers) == len(adapter.layers()) - 1


def test_nothing_is_kept_of_the_input_where_only_b_is_trained() -> None:
    adapter = trained(ARCHITECTURES["qwen3"]())
    batch = make_batch(ROWS, adapter.base.device)

    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), Fused(adapter).in_place():
            completion_logits(adapter.base, batch)
        return sum(sizes.values())

    everything = kept()
    for parameter in adapter.parameters():
        parameter.requires_grad_(any(parameter is one for one in adapter.outward()))
    assert kept() < everything
