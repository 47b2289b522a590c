"""The adapters that a session had, numbered in their order, and what to say of one: why it is not there, which one stands."""

from __future__ import annotations

from dataclasses import dataclass

from lawf_repl.config import Settings
from lawf_repl.learn.adapter import Weights
from lawf_repl.records import TrainingResult


@dataclass(frozen=True)
class Version:
    """An adapter that the session had, as far as it is needed to have it back. None of it changes."""

    weights: Weights | None        # None: the session was read from a file, and this adapter was not saved or is no longer there
    loaded: str | None             # the folder it was loaded from, whose structure it has; None if it was made here
    settings: Settings             # rank and layers of one made here
    training: TrainingResult | None
    before: tuple[int, bool] = (0, False)  # the number of the one that stood when this one was trained, and whether it was on
    folder: str = ""               # that the session's file names for it, where it was read from one

    @property
    def structure(self) -> tuple[object, ...]:
        """What has to be equal for the weights of one to fit into another."""
        return (self.loaded,) if self.loaded else (self.settings.rank, self.settings.layers, self.settings.scope)

    @property
    def absence(self) -> str:
        """Why there are no weights, and what to do."""
        again = "/train makes it again" if self.training is not None else "/train makes another"
        if not self.folder:
            return f"the adapter was not saved before lawf ended: {again}"
        return f"the adapter is not there as it was saved: put its folder {self.folder} back and open the session again, or {again}"
