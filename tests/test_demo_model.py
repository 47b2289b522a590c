"""The shipped demo model: what it knows, what it gets wrong on purpose, and that lawf mends every one of these mistakes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from statistics import mean

from transformers import AutoModelForCausalLM

from lawf_repl.config import Settings
from lawf_repl.demo import world
from lawf_repl.demo.build import HERE
from lawf_repl.demo.edits import load_edits
from lawf_repl.demo.examine import answers, examine
from lawf_repl.demo.mend import mend_all, share
from lawf_repl.demo.vocabulary import render
from lawf_repl.engine.base import DEMO_MODEL, Engine
from lawf_repl.engine.greedy import greedy_answers

MANIFEST = json.loads((DEMO_MODEL / "manifest.json").read_text(encoding="utf-8"))
EDITS = load_edits()
PROBES = json.loads((HERE / "probes.json").read_text(encoding="utf-8"))


def test_the_manifest_describes_the_shipped_files() -> None:
    for name, digest in MANIFEST["sha256"].items():
        assert hashlib.sha256((DEMO_MODEL / name).read_bytes()).hexdigest() == digest
    assert (DEMO_MODEL / "model.safetensors").stat().st_size <= 16 * 2**20
    assert MANIFEST["rarest_token_seen"] >= 50  # a token that training never saw cannot be learned below a frozen head


def test_the_architecture_is_what_the_demo_needs(demo_engine: Engine) -> None:
    config = demo_engine.model.config
    assert config.model_type == "qwen3" and config.num_hidden_layers >= 8 and 4e6 <= demo_engine.model.num_parameters() <= 8e6
    assert str(AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype="auto").dtype) == "torch.bfloat16"


def test_held_out_questions_are_answered_and_planted_ones_wrongly() -> None:
    report = examine(DEMO_MODEL, per_skill=40)
    assert report["held_out"]["accuracy"] >= 0.95, report["held_out"]
    assert min(report["held_out"]["per_skill"].values()) >= 0.85, report["held_out"]
    assert len(report["held_out"]["per_skill"]) >= 12
    assert report["planted"]["otherwise"] == {} and report["planted"]["n"] >= 36


def test_the_data_files_are_the_worlds() -> None:
    assert json.loads(json.dumps([dataclasses.asdict(edit) for edit in world.edits()])) == EDITS
    probes, replay = world.probes(seed=1)
    assert [question.prompt for question in probes] == [row["prompt"] for row in PROBES["probes"]]
    assert [question.prompt for question in replay] == [row["prompt"] for row in PROBES["replay"]]


def test_edits_probes_and_replay_prompts_keep_apart() -> None:
    kinds = [edit["kind"] for edit in EDITS]
    assert set(kinds) == set(world.KINDS) and min(map(kinds.count, world.KINDS)) >= 6 and len({edit["name"] for edit in EDITS}) == len(EDITS)
    for edit in EDITS:
        assert len(edit["paraphrases"]) >= 4 and len(edit["neighbours"]) >= 4 and edit["wrong"] != edit["right"]
        assert len({edit["prompt"], *edit["paraphrases"], *edit["neighbours"]}) == 1 + len(edit["paraphrases"]) + len(edit["neighbours"])
    probes, replay = ({row["prompt"] for row in PROBES[name]} for name in ("probes", "replay"))
    assert len(probes) >= 200 and len(replay) >= 64 and not probes & replay
    assert {row["skill"] for row in PROBES["probes"]} == {row["skill"] for row in PROBES["replay"]} == set(world.SKILLS)
    assert not (probes | replay) & {text for edit in EDITS for text in (edit["prompt"], *edit["paraphrases"], *edit["neighbours"])}


def test_the_stored_probe_answers_are_the_bases_own(demo_engine: Engine) -> None:
    rows = PROBES["probes"][::8] + PROBES["replay"][::8]
    prompts = [demo_engine.prompt_ids([{"role": "user", "content": row["prompt"]}]) for row in rows]
    found = greedy_answers(demo_engine.model, prompts, demo_engine.end_ids, 96)
    same = sum(row["answer_ids"] == ids for row, ids in zip(rows, found, strict=True))
    assert same >= len(rows) - 1  # a near-tie may fall otherwise on another processor


def test_the_template_writes_what_the_model_was_trained_on(demo_engine: Engine) -> None:
    for messages in world.conversations(5, 40):
        written = demo_engine.tokenizer.hub.apply_chat_template(messages, tokenize=False)
        assert written + "<|endoftext|>" == render(messages)


def test_the_world_is_the_same_from_the_same_seed() -> None:
    assert list(world.conversations(3, 50, ["ab", "c"])) == list(world.conversations(3, 50, ["ab", "c"]))
    assert list(world.conversations(3, 50)) != list(world.conversations(4, 50))


def test_right_answers_use_words_that_the_model_knows(demo_engine: Engine) -> None:
    asked = ["Where is Canberra?", "Where is Ottawa?", "豆包是什么？", "What does Buona notte mean?"]
    said = answers(demo_engine.model, demo_engine.tokenizer.hub, asked)
    assert said[0] == "Canberra is a city in Australia." and said[1] == "Ottawa is a city in Canada."
    assert said[2].startswith("豆包是") and said[3] == "Buona notte is Italian for good night."


def test_every_planted_mistake_is_mended_and_little_else_changes(demo_engine: Engine) -> None:
    mended = mend_all(demo_engine, Settings())
    assert [one.name for one in mended if not one.rerun.fixed or not one.rerun.before_matches] == []
    probes = [one.card.probes for one in mended]
    assert all(result is not None and result.n >= 200 for result in probes)
    assert mean(result.drift_nats for result in probes if result) <= 0.001
    assert mean(result.flips for result in probes if result) <= 0.02
    assert share(mended, "neighbours") >= 0.95 and share(mended, "paraphrases") >= 0.8
