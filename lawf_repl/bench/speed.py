"""`lawf bench speed`: what each thing that a user waits for takes, beside a peer that does the same in the same process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lawf_repl.bench.decoding import correction_figures, decode_figures, reply_figures
from lawf_repl.bench.figures import Figure
from lawf_repl.bench.lengths import length_figures
from lawf_repl.bench.models import Subject
from lawf_repl.bench.stepping import memory_figures, step_figures, training_figures
from lawf_repl.errors import UsageError

# By the name that --only takes; a part yields nothing for a subject that it does not concern.
PARTS: dict[str, Callable[[Subject], Iterator[Figure]]] = {
    "correct": correction_figures,
    "decode": decode_figures,
    "prompt": length_figures,
    "reply": reply_figures,
    "step": step_figures,
    "memory": memory_figures,
    "training": training_figures,
}


def run_speed(subject: Subject, only: str | None = None) -> Iterator[Figure]:
    """Figures of all parts, or of one. Raises UsageError at the call for a part that there is not; while it runs, OutOfMemory."""
    if only is not None and only not in PARTS:
        raise UsageError(f"--only {only}: expected one of {', '.join(PARTS)}")
    return (figure for name, part in PARTS.items() if only in (None, name) for figure in part(subject))
