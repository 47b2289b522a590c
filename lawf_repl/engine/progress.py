"""Downloads and the loading of weights as records, in place of the bars that the libraries would draw themselves."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm
from transformers.utils.logging import set_tqdm_hook

from lawf_repl.records import Progress

Report = Callable[[Progress], None]


def reporter(report: Report) -> type[Any]:
    """A tqdm class that draws nothing and reports each redraw instead: transformers and huggingface_hub take it as `tqdm_class`."""
    class Reporter(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # huggingface_hub's own
            super().__init__(*args, **kwargs | {"file": io.StringIO(), "disable": False})

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if self.total:
                report(Progress(str(self.desc or "loading").removesuffix(": "), int(self.n), int(self.total), str(self.unit).strip()))
            return True

    return Reporter


@contextmanager
def reported(report: Report | None) -> Iterator[dict[str, Any]]:
    """While it is entered, loading reports its progress; gives the keywords that from_pretrained takes for it."""
    if report is None:
        yield {}
        return
    made = reporter(report)
    before = set_tqdm_hook(lambda factory, args, kwargs: made(*args, **kwargs))
    try:
        yield {"tqdm_class": made}
    finally:
        set_tqdm_hook(before)
