"""Where in a text an adapter acts: everywhere, or from the mark on that begins the answer.

An adapter that leaves the prompt alone is what peft calls an activated LoRA (aLoRA, arXiv 2504.12397): its weights count from the
last place of `alora_invocation_tokens` on. Here these are what the chat template puts before an answer. The prompt's states are then
the base's, with the adapter on and off: they stay in the cache, and a training step need not compute them again.

The model carries such an adapter's Reach, and whoever runs the model asks for it: where a forward has tokens before the mark, they
are masked out of what the LoRA adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lawf_repl.engine.layout import is_plain

_NAME = "_lawf_reach"


class Reach:
    """The mark of an adapter that acts behind it alone, and the layers that add what it has learned."""

    def __init__(self, mark: Sequence[int], inner: Sequence[torch.nn.Module]) -> None:
        """`inner` are the matrices A, whose outputs (B, T, r) are what is masked."""
        self.mark = tuple(mark)
        self._inner = list(inner)
        self._acting: torch.Tensor | None = None  # (B, T) of the forward that runs now; None: everywhere

    def start(self, ids: Sequence[int]) -> int:
        """Where it begins to act: at the last mark in a text, as peft has it, or behind its end where there is none."""
        ids, size = list(ids), len(self.mark)
        return next((place for place in range(len(ids) - size, -1, -1) if tuple(ids[place:place + size]) == self.mark), len(ids))

    @property
    def acting(self) -> torch.Tensor | None:
        """The mask (B, T) that is in force, True where the adapter acts."""
        return self._acting

    @contextmanager
    def only(self, acting: torch.Tensor) -> Iterator[None]:
        """Inside, a forward is the base's wherever `acting` (B, T) is False.

        With a cache, T counts the tokens in it too: some models compute keys and values of all of them anew from what they cached.
        """
        if bool(acting.all()):
            yield
            return
        was, self._acting = self._acting, acting
        with ExitStack() as stack:
            stack.callback(setattr, self, "_acting", was)
            for module in self._inner if was is None else ():
                stack.callback(module.register_forward_hook(self._mask).remove)
            yield

    def _mask(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """A's output (B, n, r) of the last n tokens, or that of all; (B, 1, n, r) and (B * n, r) hold the same in the same order."""
        rows = output.numel() // output.shape[-1]
        acting = self._acting
        if acting is not None:
            new = rows // len(acting)
            acting = acting[:, -new:] if 0 < new <= acting.shape[1] and new * len(acting) == rows else None
        if acting is None or [size for size in output.shape[:-1] if size != 1] not in ([size for size in acting.shape if size != 1], [rows]):
            raise RuntimeError(f"an adapter that acts on completions alone met tokens of shape {tuple(output.shape[:-1])} it cannot place")
        return output * acting.reshape(*output.shape[:-1], 1).to(output.device, output.dtype)


def reach_of(model: Any) -> Reach | None:
    """The Reach of the adapter that is on a model; None where there is none, or one that acts everywhere."""
    return getattr(model, _NAME, None)


def set_reach(model: Any, reach: Reach | None) -> None:
    """What reach_of gives from now on."""
    if reach is not None:
        setattr(model, _NAME, reach)
    elif hasattr(model, _NAME):
        delattr(model, _NAME)


@contextmanager
def behind_marks(model: Any, starts: Sequence[int], since: int, stop: int) -> Iterator[None]:
    """Inside, a forward over the places [since, stop) of some rows, with what is before them cached; each begins to be adapted at its start.

    A plain decoder that is behind all of them needs no mask any more.
    """
    reach = reach_of(model)
    if reach is None or (max(starts) <= since and is_plain(model)):
        yield
        return
    places = torch.arange(stop, device=model.device)
    with reach.only(places[None] >= torch.tensor(list(starts), device=model.device)[:, None]):
        yield
