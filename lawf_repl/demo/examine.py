"""Examine a demo model: how many held-out questions it answers exactly, and whether it gives every planted wrong answer."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lawf_repl.demo import world
from lawf_repl.engine.greedy import greedy_answers


def answers(model: Any, tokenizer: Any, prompts: list[str], max_tokens: int = 72) -> list[str]:
    """Greedy answers as text, the end-of-turn token left out; "…" is appended where it never came."""
    rows = [tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False) for prompt in prompts]
    out = []
    for ids in greedy_answers(model, rows, [tokenizer.eos_token_id], max_tokens):
        ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
        out.append(tokenizer.decode(ids[:-1] if ended else ids) + ("" if ended else "…"))
    return out


def examine(folder: Path, per_skill: int = 60) -> dict[str, Any]:
    """Accuracy on held-out questions, overall and per skill, and the planted answers, of the model in `folder` (run in fp32)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    questions = world.held_out_questions(seed=7, per_skill=per_skill)
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers(model, tokenizer, [q.prompt for q in questions]), strict=True):
        right[question.skill].append(answer == question.says)
    edits = world.edits()
    given = answers(model, tokenizer, [edit.prompt for edit in edits])
    paraphrases = [(edit.wrong, text) for edit in edits for text in edit.paraphrases]
    follows = [wrong == answer for (wrong, _), answer in zip(paraphrases, answers(model, tokenizer, [t for _, t in paraphrases]), strict=True)]
    flat = [ok for oks in right.values() for ok in oks]
    return {"held_out": {"n": len(flat), "accuracy": round(sum(flat) / len(flat), 4),
                         "per_skill": {name: round(sum(oks) / len(oks), 4) for name, oks in right.items()}},
            "planted": {"n": len(edits), "as_planted": sum(e.wrong == g for e, g in zip(edits, given, strict=True)),
                        "otherwise": {e.name: g for e, g in zip(edits, given, strict=True) if e.wrong != g},
                        "paraphrases_as_planted": round(sum(follows) / len(follows), 4)}}


if __name__ == "__main__":
    import json

    print(json.dumps(examine(Path(sys.argv[1])), ensure_ascii=False, indent=1))
