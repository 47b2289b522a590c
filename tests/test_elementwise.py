"""Norms and gated products as one operation give what the row of operations gives, keep less, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from lawf_repl.learn import elementwise
from lawf_repl.learn.elementwise import Elementwise
from tests.architecture_zoo import ARCHITECTURES, MORE

SERVED = ARCHITECTURES | MORE
norm: Any = elementwise._RMSNorm.apply
product: Any = elementwise._GatedProduct.apply


def test_their_gradients_are_right_to_the_digit() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    assert torch.allclose(norm(x, weight, 1e-6), functional.rms_norm(x, (5,), weight, 1e-6))
    assert gradcheck(lambda x: norm(x, weight, 1e-6), (x,))
    a, b = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.allclose(product(a, b), functional.silu(a) * b)
    assert gradcheck(product, (a, b))
    assert gradcheck(lambda a: product(a, b.detach()), (a,))


def test_a_row_of_zeros_has_a_norm() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = norm(x, torch.ones(4), 1e-6)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4)) and bool(torch.isfinite(x.grad).all())  # type: ignore[arg-type]


def layers_of(model: Any) -> list[torch.nn.Module]:
    return list(model.model.layers)


@pytest.mark.parametrize("name, norms, gated", [("qwen3", 4, 1), ("llama", 2, 1), ("olmo2", 4, 0), ("gemma3", 0, 0), ("gpt2", 0, 0)])
def test_what_is_taken_for_one(name: str, norms: int, gated: int) -> None:
    model: Any = SERVED[name]().requires_grad_(False)
    layers = layers_of(model) if hasattr(model, "model") else list(model.transformer.h)
    kinds = [type(module).__name__ for module, _ in Elementwise(layers[:1]).parts]
    assert len([kind for kind in kinds if kind.endswith("Norm")]) == norms and len([kind for kind in kinds if kind.endswith("MLP")]) == gated


def test_a_module_that_is_hooked_trained_or_something_else_is_left_alone() -> None:
    model = SERVED["qwen3"]().requires_grad_(False)
    layer: Any = layers_of(model)[0]
    layer.input_layernorm.register_forward_hook(lambda module, given, out: 2 * out)
    layer.post_attention_layernorm.weight.requires_grad_(True)
    layer.mlp.act_fn = torch.nn.GELU()
    layer.self_attn.q_norm.forward = lambda x: x
    assert [module for module, _ in Elementwise([layer]).parts] == [layer.self_attn.k_norm]
    layer.self_attn.k_norm.weight.data = layer.self_attn.k_norm.weight.data.half()
    assert not Elementwise([layer]).parts


def test_a_layer_gives_the_same_and_keeps_less() -> None:
    model = SERVED["qwen3"]().requires_grad_(False)
    layer: Any = layers_of(model)[0]
    x = torch.randn(2, 7, model.config.hidden_size, requires_grad=True)
    toward = torch.randn_like(x)

    def run() -> tuple[torch.Tensor, torch.Tensor, int]:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = layer.mlp(layer.post_attention_layernorm(x))
            size = sum(kept.values())
        (gradient,) = torch.autograd.grad(out, x, toward)
        return out, gradient, size

    expected = run()
    with Elementwise([layer]).in_place():
        found = run()
    assert torch.allclose(found[0], expected[0], atol=1e-6) and torch.allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
    assert found[2] < expected[2]
    assert torch.equal(run()[0], expected[0])
