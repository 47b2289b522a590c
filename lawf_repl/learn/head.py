"""A model taken apart behind its decoder: the final hidden states of the positions that matter, and the logits that follow from them.

A hidden state takes a hundredth of the memory of its logits where the vocabulary is large, and is as good, because the head is
frozen. The head is the model's own forward with the decoder's answer put in its place: whatever it scales, caps or multiplies
there stays. That is tried once; where the logits come out otherwise, the states are the logits themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from lawf_repl.engine.cache import uncached
from lawf_repl.engine.layout import is_plain
from lawf_repl.engine.products import FrozenLinear, product_of
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import Batch, completion_logits, forward

TRIAL = 8     # tokens that it is tried on
CLOSE = 0.01  # mean difference of the logits, as a share of their spread: rounding in half precision; what is wrong is off by more
BLOCK, LEAST = 2**18, 2**11  # logits of a block of the vocabulary, and tokens of it at least: so many are still in the cache when they are used
WHOLE = 2**22  # the same on an accelerator, where a block is a call and no more has to be kept beside it
NOT_APART = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)  # what a model that works otherwise raises

Back = Callable[[torch.Tensor], torch.Tensor]  # the gradient for logits (n, V) to that for the states (n, H)


class Head:
    """What a model does behind its decoder. States are (N, H); where the model cannot be taken apart, they are logits (N, V)."""

    def __init__(self, adapter: Adapter) -> None:
        self._model = adapter.base
        decoder = getattr(self._model, "base_model", None)
        separate = isinstance(decoder, torch.nn.Module) and decoder is not self._model
        # a LoRA on the head itself makes its logits hang on more than the states
        self._decoder: Any = decoder if separate and _inside(adapter, decoder) else None
        self._answer: Callable[..., Any] = ModelOutput
        # of a plain decoder it is one module, which can be called by several threads at once
        self.alone: Any = self._model.get_output_embeddings() if self._decoder is not None and is_plain(self._model) else None
        self.vocabulary = self._try()  # V

    @property
    def apart(self) -> bool:
        """Whether states are less than logits."""
        return self._decoder is not None

    def states(self, batch: Batch) -> torch.Tensor:
        """What the logits of each completion token follow from (N, H)."""
        if self._decoder is None:
            return completion_logits(self._model, batch)
        inner = self._decoder.forward
        seen: list[torch.Tensor] = []

        def narrowed(*given: Any, **more: Any) -> Any:
            out = inner(*given, **more)
            self._answer = type(out)
            hidden = out["last_hidden_state"]
            seen.append(hidden[batch.rows, batch.columns])
            return self._answer(last_hidden_state=hidden[:1, :1].detach())  # the head is run apart; here on one position

        with replaced([(self._decoder, narrowed)]):
            forward(self._model, batch)
        return seen[0]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (n, V) of states (n, H)."""
        if self._decoder is None:
            return states
        if self.alone is not None:
            out: torch.Tensor = self.alone(states)
            return out
        ids = torch.zeros(1, len(states), dtype=torch.long, device=self._model.device)
        with replaced([(self._decoder, lambda *given, **more: self._answer(last_hidden_state=states[None]))]):
            logits: torch.Tensor = self._model(input_ids=ids, **uncached(self._model)).logits[0]
        return logits

    def free(self, states: torch.Tensor, learns: bool = False) -> tuple[torch.Tensor, Back]:
        """Logits (n, V) of states (n, H) in float32 that may be written over, and the way back from their gradient where something `learns`.

        With few rows MKL makes a head of 150,000 tokens in one piece at a third of the speed that it has block by block.
        """
        if self._is_one_product():
            product, weight = product_of(self.alone), self.alone.weight.detach()
            with torch.no_grad():
                made = states.new_empty(len(states), self.vocabulary)
                for start, stop in blocks(made):
                    made[:, start:stop] = product(states, weight[start:stop], None)
            return made, lambda slope: product(slope, weight.t(), None)
        own = states.detach().requires_grad_(learns)
        with torch.set_grad_enabled(learns):
            logits = self.logits(own)
        whole = logits.detach().float()
        if whole.data_ptr() == logits.data_ptr():  # needed as they are: for the way back, as the states, or by one who looks on
            whole = whole.clone()
        return whole, lambda slope: torch.autograd.grad(logits, own, slope.to(logits.dtype))[0]

    def _is_one_product(self) -> bool:
        """Whether the head is a frozen float32 matrix on a CPU, and nothing looks on."""
        head = self.alone
        return type(head) in (torch.nn.Linear, FrozenLinear) and head.weight.device.type == "cpu" and head.weight.dtype == torch.float32 \
            and head.bias is None and not head.weight.requires_grad \
            and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))

    @torch.no_grad()
    def _try(self) -> int:
        ids = torch.arange(TRIAL, device=self._model.device)[None] % int(self._model.config.get_text_config(decoder=True).vocab_size)
        place = torch.arange(TRIAL, device=ids.device)
        batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(place), place, ids[0], (TRIAL,))
        whole = completion_logits(self._model, batch)
        if self._decoder is not None:
            try:
                off = torch.nan_to_num((self.logits(self.states(batch)) - whole).float())
                good = bool(off.abs().mean() <= CLOSE * torch.nan_to_num(whole.float(), neginf=0.0).std())
            except NOT_APART:
                good = False
            if not good:
                self._decoder = self.alone = None
        return int(whole.shape[-1])


def blocks(logits: torch.Tensor) -> Iterator[tuple[int, int]]:
    """[start, stop) of the vocabulary, as much at a time as a processor's cache holds of logits (n, V)."""
    count, vocabulary = logits.shape
    width = max(LEAST, (BLOCK if logits.device.type == "cpu" else WHOLE) // max(count, 1))
    yield from ((start, min(start + width, vocabulary)) for start in range(0, vocabulary, width))


def _inside(adapter: Adapter, decoder: Any) -> bool:
    """Whether all LoRA is in the decoder."""
    modules = {id(module) for module in decoder.modules()}
    return all(id(layer) in modules for layer in adapter.layers().values())


@contextmanager
def replaced(forwards: Sequence[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """The forwards of modules replaced inside the block; of a model spread over devices one may be replaced already.

    All of them in one block, and past Module.__setattr__: a hundred blocks of one each took a twentieth of a step of a small model.
    """
    owns = [module.__dict__.get("forward") for module, _ in forwards]
    for module, new in forwards:
        module.__dict__["forward"] = new
    try:
        yield
    finally:
        for (module, _), own in zip(forwards, owns, strict=True):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own
