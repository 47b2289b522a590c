"""A cache layer with room behind its states, so that a token more is written there and nothing is copied."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens, and a quarter of what there is


class RoomyLayer(DynamicLayer):
    """DynamicLayer, whose `keys` and `values` (B, heads, T, D) are views of larger tensors here; cutting it takes nothing but a shorter view.

    Where tokens are appended one by one nobody looks at the views, and those of 30 layers take nearly as long as a layer: they are made when they
    are asked for.
    """

    def __init__(self) -> None:
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self._length: int | None = None  # of the views, where they are not made yet
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def keys(self) -> Any:
        """The keys (B, heads, T, D)."""
        self._make_views()
        return self._keys

    @keys.setter
    def keys(self, keys: torch.Tensor | None) -> None:
        self._make_views()
        self._keys = keys

    @property
    def values(self) -> Any:
        """The values (B, heads, T, D)."""
        self._make_views()
        return self._values

    @values.setter
    def values(self, values: torch.Tensor | None) -> None:
        self._make_views()
        self._values = values

    def _make_views(self) -> None:
        if self._length is not None:
            self._keys, self._values = (whole.narrow(-2, 0, self._length) for whole in self._whole)  # a third of what an index costs
            self._length = None

    def get_seq_length(self) -> int:
        """Tokens whose states stand."""
        return int(super().get_seq_length()) if self._length is None else self._length

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
        keys, values = self.room_for_one(key.shape[0], key.shape[1], key)
        start = self.get_seq_length()
        keys.select(-2, start).copy_(key)
        values.select(-2, start).copy_(value)
        self.grew_by_one()
        return self.keys, self.values

    def room_for_one(self, heads: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors (1, heads, room, D) with room for one more token of the only row, in dtype and on the device of `like`.

        Its states count when `grew_by_one` says that they are there.
        """
        if self._length is not None and self._length < self._whole[0].shape[-2]:
            return self._whole
        start = self.get_seq_length()
        one = like.new_empty(1, heads, 1, width) if not start else self.keys[..., :1, :]
        if not start or not self._has_room(self._whole[0], one, start, start + 1):
            self.update(one, one)  # makes room
            self.keys, self.values = self.keys[..., :start, :], self.values[..., :start, :]
        return self._whole

    def grew_by_one(self) -> None:
        """The states of one more token have been written behind the others, where `room_for_one` was."""
        self._length = self.get_seq_length() + 1

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
