"""A cache layer with room behind its states, so that a token more is written there and nothing is copied."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens, and a quarter of what there is


class RoomyLayer(DynamicLayer):
    """DynamicLayer, whose `keys` and `values` (B, heads, T, D) are views of larger tensors here; cutting it takes nothing but a shorter view."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._whole = key_states.new_empty(0), value_states.new_empty(0)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write states (B, heads, n, D) behind the others; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        keys, values = self._whole
        if not self._has_room(keys, key_states, start, stop):
            keys, values = (_longer(now, new, stop + stop // 4 + ROOM) for now, new in ((self.keys, key_states), (self.values, value_states)))
            self._whole = keys, values
        keys[..., start:stop, :] = key_states
        values[..., start:stop, :] = value_states
        self.keys, self.values = keys[..., :stop, :], values[..., :stop, :]
        return self.keys, self.values

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`update` with the states (heads, D) of one more token of the only row."""
        start = self.get_seq_length()
        if not start or not self._has_room(self._whole[0], key[None, :, None], start, start + 1):
            return self.update(key[None, :, None], value[None, :, None])
        keys, values = self._whole
        keys.select(-2, start).copy_(key)
        values.select(-2, start).copy_(value)
        self.grew_by_one()
        return self.keys, self.values

    def room_for_one(self, heads: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors (1, heads, room, D) with room for one more token of the only row, in dtype and on the device of `like`.

        Its states count when `grew_by_one` says that they are there.
        """
        start = self.get_seq_length()
        one = like.new_empty(1, heads, 1, width) if not start else self.keys[..., :1, :]
        if not start or not self._has_room(self._whole[0], one, start, start + 1):
            self.update(one, one)  # makes room
            self.keys, self.values = self.keys[..., :start, :], self.values[..., :start, :]
        return self._whole

    def grew_by_one(self) -> None:
        """The states of one more token have been written behind the others."""
        stop = self.keys.shape[-2] + 1
        keys, values = self._whole
        self.keys, self.values = keys.narrow(-2, 0, stop), values.narrow(-2, 0, stop)  # a third of what an index costs

    def _has_room(self, whole: torch.Tensor, new: torch.Tensor, start: int, stop: int) -> bool:
        """Whether what stands is in `whole`, which rows that were chosen or repeated are not any more, and `new` fits behind it."""
        return whole.numel() > 0 and stop <= whole.shape[-2] and whole.shape[:-2] == new.shape[:-2] and (
            start == 0 or self.keys.data_ptr() == whole.data_ptr())


def _longer(now: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
    """Room for `length` tokens shaped like those of `new`, with `now` at its start."""
    whole = new.new_empty(*new.shape[:-2], length, new.shape[-1])
    if now.numel():
        whole[..., :now.shape[-2], :] = now
    return whole
