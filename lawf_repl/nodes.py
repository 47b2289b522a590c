"""The nodes of a session's tree, from what happened; each is made once and never changed."""

from __future__ import annotations

from lawf_repl.records import Completion, Correction, Node, TrainingResult


def answered_node(number: int, parent: Node | None, answer: Completion, correction: Correction | None, adapter: int, adapter_on: bool,
                  confidence: float) -> Node:
    """The node of an answer: what the correction put there and what the model, with or without an adapter, went on with."""
    kept = correction.position if correction else 0
    own = kept + (len(correction.ids) if correction else 0)  # from here on it is the model's
    fixed = frozenset(p for p in parent.fix_positions if p < kept) if parent else frozenset()
    adapted = frozenset(p for p in parent.adapted_positions if p < kept) if parent else frozenset()
    if adapter_on:
        adapted |= frozenset(range(own, len(answer.tokens)))
    mixed = adapter_on or (parent is not None and parent.adapted)
    return Node(number, parent.id if parent else None, answer, correction, None, adapter, adapter_on, confidence,
                fixed | frozenset(range(kept, own)), adapted, mixed)


def trained_node(number: int, parent: Node, result: TrainingResult, adapter: int, confidence: float) -> Node:
    """The node of a training: the answer is the parent's."""
    return Node(number, parent.id, parent.completion, None, result, adapter, True, confidence, parent.fix_positions, parent.adapted_positions,
                parent.adapted)
