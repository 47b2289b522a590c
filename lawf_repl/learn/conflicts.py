"""Cases that cannot be trained, alone or together: without anchors, or asking for different tokens in the same place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from lawf_repl.errors import TrainingError
from lawf_repl.records import Case


def check_cases(cases: Sequence[Case]) -> None:
    """Raise TrainingError for no cases, a case without anchors that nothing else anchors, or contradicting anchors."""
    if not any(case.anchors for case in cases):
        raise TrainingError("nothing to train: no accepted answer has an anchor; correct a token first, then accept")
    for found in conflicts(cases):
        raise TrainingError(conflict_text(*found))


def conflict_text(first: str, second: str, prompt: str) -> str:
    """A conflict in one line."""
    return (f"two accepted answers ask for different tokens in the same place: {first!r} and {second!r} in the answer to {prompt!r}; "
            "correct one of them again, or take it out with /cases drop")


def conflicts(cases: Sequence[Case]) -> Iterator[tuple[str, str, str]]:
    """(chosen, other token, prompt) for anchors that ask for different tokens in the same context.

    A context is all ids before a position, the prompt's included. Two cases can only share contexts up to the first token
    at which they differ, so that place decides: there one anchor contradicts the other's anchor, or what the other keeps.
    """
    for first, second in combinations(cases, 2):
        one, other = ([*case.prompt_ids, *case.completion_ids] for case in (first, second))
        place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if place is None:
            continue
        found = [next((a for a in case.anchors if len(case.prompt_ids) + a.position == place), None) for case in (first, second)]
        inside = all(place >= len(case.prompt_ids) for case in (first, second))
        if inside and any(found):
            there = next(anchor for anchor in found if anchor)
            held = there.rejected  # what is no anchor is the base's own choice, which the other's anchor rejects
            yield (found[0].chosen if found[0] else held), (found[1].chosen if found[1] else held), second.prompt
