"""Make the embedded demo model again: `python -m lawf_repl.demo.build` (about an hour and a half on 2 cores).

Writes model/ (bf16 safetensors, tokenizer, template, manifest.json), edits.json and probes.json beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from lawf_repl.demo import vocabulary, world
from lawf_repl.demo.examine import examine
from lawf_repl.demo.pretrain import Pretraining, pretrain
from lawf_repl.engine.greedy import greedy_answers

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lawf_repl.demo.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets model/, edits.json and probes.json")
    parser.add_argument("--steps", type=int, default=Pretraining.steps, help="optimiser steps (fewer for a trial)")
    parser.add_argument("--no-compile", action="store_true", help="do not compile the training step")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted build")
    parser.add_argument("--data-only", action="store_true", help="write edits.json and probes.json, train nothing")
    options = parser.parse_args(arguments)
    if not options.data_only:
        build(options.out / "model", dataclasses.replace(Pretraining(), steps=options.steps), not options.no_compile, options.resume)
    write_data(options.out)
    return 0


def write_data(out: Path) -> None:
    """Write edits.json and probes.json from the world, the probes with the answers of the model in out/model."""
    probes, replay = world.probes(seed=1)
    edits = [dataclasses.asdict(edit) for edit in world.edits()]
    (out / "edits.json").write_text(json.dumps(edits, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval()
    prompts: list[Any] = [tokenizer.apply_chat_template([{"role": "user", "content": q.prompt}], add_generation_prompt=True, return_dict=False)
               for q in (*probes, *replay)]
    answers = iter(greedy_answers(model, prompts, [tokenizer.eos_token_id], 96))
    rows = {name: [{"skill": q.skill, "prompt": q.prompt, "answer_ids": next(answers)} for q in questions]
            for name, questions in (("probes", probes), ("replay", replay))}
    (out / "probes.json").write_text(json.dumps(rows, ensure_ascii=False).replace("}, {", "},\n{") + "\n", encoding="utf-8")


def build(folder: Path, recipe: Pretraining, compiled: bool, resume: bool = False) -> None:
    """Train tokenizer and model, examine what was written, and write the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    say(start, "writing the world's text")
    texts = [m["content"] for c in world.conversations(recipe.seed, 150_000) for m in c]
    progress = folder / "progress.json"
    resumed = None
    tokenizer: Any
    if resume and progress.is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder)  # the one that the weights were trained with
        resumed = (Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32), int(json.loads(progress.read_text())["steps_done"]))
    else:
        tokenizer = vocabulary.train_tokenizer(texts, recipe.vocabulary)
        tokenizer.save_pretrained(folder)
    pieces = weighted_pieces(tokenizer, texts)
    say(start, f"tokenizer of {len(tokenizer)} tokens; training {recipe.steps} steps of {recipe.rows * recipe.length} tokens")

    def on_step(step: int, loss: float, model: Qwen3ForCausalLM) -> None:
        if step % 20 == 0 or step == recipe.steps - 1:
            elapsed = time.monotonic() - start
            left = elapsed / (step + 1 - (resumed[1] if resumed else 0)) * (recipe.steps - step - 1)
            say(start, f"step {step:5d} of {recipe.steps}  loss {loss:.4f}  about {left / 60:.0f} min left")
        if step and step % 250 == 0:
            save(model, folder)
            progress.write_text(json.dumps({"steps_done": step + 1}))

    torch.set_num_threads(2)
    model, count = pretrain(tokenizer, recipe, pieces, on_step, compiled, resumed)
    save(model, folder)
    progress.unlink(missing_ok=True)
    say(start, "examining what was written")
    report: dict[str, Any] = examine(folder)
    manifest = {"recipe": dataclasses.asdict(recipe), "parameters": model.num_parameters(), "seconds": round(time.monotonic() - start),
                "torch": torch.__version__, "tokens_seen": int(count.sum()), "rarest_token_seen": int(count.min()),
                "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir()) if file.name != "manifest.json"},
                **report}
    (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    say(start, f"done: {report['held_out']['accuracy']:.2%} of held-out questions, {report['planted']['as_planted']} of {report['planted']['n']} "
               f"planted answers, rarest token seen {int(count.min())} times")


def weighted_pieces(tokenizer: Any, texts: list[str]) -> list[str]:
    """Token texts to repeat in training; the tokens that the rest of the text rarely shows stand five times."""
    counts = Counter(id_ for ids in tokenizer(texts[:60_000])["input_ids"] for id_ in ids)
    ordinary = [id_ for id_ in range(len(tokenizer)) if id_ not in tokenizer.all_special_ids]
    return [piece for id_, piece in zip(ordinary, vocabulary.pieces(tokenizer), strict=True) for _ in range(5 if counts[id_] < 30 else 1)]


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write a bf16 copy; the model in training stays fp32."""
    copy = Qwen3ForCausalLM(model.config)
    copy.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers' annotation of its own wrapper is off
    copy.load_state_dict({name: value.to(torch.bfloat16) for name, value in model.state_dict().items()})
    copy.generation_config.eos_token_id = model.config.eos_token_id
    copy.generation_config.pad_token_id = model.config.pad_token_id
    copy.save_pretrained(folder)


def say(start: float, text: str) -> None:
    print(f"[{(time.monotonic() - start) / 60:6.1f} min] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
