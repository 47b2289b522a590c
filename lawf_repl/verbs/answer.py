"""`lawf answer`: one answer, as text or as JSON with every token's statistics."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lawf_repl.config import Settings
from lawf_repl.records import Completion, Token
from lawf_repl.session import open_session
from lawf_repl.ui.layout import visible
from lawf_repl.verbs.inputs import interruptible, is_terminal, print_json, read_prompt
from lawf_repl.verbs.loading import load_shown


def run_answer(options: argparse.Namespace, settings: Settings) -> int:
    """Generate, streaming the text unless --json; exit code 130 if interrupted (what came so far is printed)."""
    messages = read_prompt(options.prompt, options.messages, settings.system)
    session = open_session(load_shown(settings), settings)
    for note in session.notes:
        print(f"lawf: {note}", file=sys.stderr)
    with interruptible() as stop:
        for token in session.ask(messages, stop):
            if not settings.json:
                show(token, session.engine.end_ids)
    assert session.node is not None
    completion = session.node.completion
    if settings.json:
        print_json(answer_json(session.model_name, messages[-1]["content"], completion))
    else:
        print()
        if completion.finish == "length":
            print(f"lawf: the answer stopped at {len(completion.tokens)} tokens (--max-tokens)", file=sys.stderr)
    return 130 if completion.finish == "interrupted" else 0


def show(token: Token, end_ids: frozenset[int]) -> None:
    """Print a token's text: raw where standard output is a file or pipe, made safe where it is a terminal."""
    if token.id not in end_ids:
        text = visible(token.text, newlines=True) if is_terminal(sys.stdout) else token.text
        print(text, end="", flush=True)


def answer_json(model: str, prompt: str, completion: Completion) -> dict[str, Any]:
    """The object of schema lawf.answer/1."""
    return {
        "schema": "lawf.answer/1", "model": model, "prompt": prompt, "prompt_ids": list(completion.prompt_ids), "text": completion.text,
        "finish": completion.finish, "tokens": [token_json(token) for token in completion.tokens],
        "timing": {"prefill_s": completion.timing.prefill_s, "decode_s": completion.timing.decode_s, "tokens_per_s": completion.timing.tokens_per_s},
    }


def token_json(token: Token) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "p": token.p, "rank": token.rank, "entropy": token.entropy,
            "alternatives": [{"id": a.id, "text": a.text, "p": a.p} for a in token.alternatives]}
