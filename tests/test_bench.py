"""The comparison with peers: its recipes are what they are called, its readings exact, its summaries right, its model left alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.text import Text

from lawf_repl.bench import objective, recipes
from lawf_repl.bench.objective import Meter, Row, Task, bootstrap, make_tasks, run, spread, summarize
from lawf_repl.bench.recipes import Peer, peer_loss
from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.demo.edits import load_edits
from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import make_batch
from lawf_repl.learn.objective import make_target
from lawf_repl.measure.probes import ProbeSet, Reference, _changes, measure_drift
from lawf_repl.records import Anchor
from lawf_repl.ui.bench import summary_table
from lawf_repl.ui.theme import Theme

ROW = Row("sft", "equal", "a", "fact", 0, True, 0.96, 16, 1.0, 1e-5, 0.0, 0.0, 1.0, 1.0)


def logprobs(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_the_peers_losses_are_the_formulas_they_are_named_after() -> None:
    base, adapted, ids = logprobs(1, 3, 5), logprobs(2, 3, 5), torch.tensor([4, 0, 2])
    target = make_target(base, (3,), [(Anchor(1, 3, 0, "", "", 1.0, 0.1),)], recipes.ANCHOR_WEIGHT / recipes.REST_WEIGHT)
    entropy = -(adapted[0, 4] + adapted[1, 0] + adapted[2, 2]) / 3
    kl = [float((base[i].exp() * (base[i] - adapted[i])).sum()) for i in range(3)]
    assert peer_loss(Peer("", 0.0), adapted, ids, target) == pytest.approx(float(entropy))
    assert peer_loss(Peer("", 0.25), adapted, ids, target) == pytest.approx(float(entropy) + 0.25 * sum(kl) / 3, rel=1e-5)
    paper = (2 * kl[0] + 4 * -float(adapted[1, 0]) + 2 * kl[2]) / 3  # weight 4 on the anchor, 2 on the rest
    assert peer_loss(Peer("", None), adapted, ids, target) == pytest.approx(paper, rel=1e-5)


def test_edits_are_taken_with_all_kinds_in_turn() -> None:
    edits = load_edits()
    kinds = {edit["kind"] for edit in edits}
    assert {edit["kind"] for edit in spread(edits, len(kinds))} == kinds
    assert sorted(edit["name"] for edit in spread(edits, None)) == sorted(edit["name"] for edit in edits)


def test_summaries_count_what_was_not_acquired_and_keep_the_seeds_of_an_edit_together() -> None:
    rows = [replace(ROW, drift_nats=2.0), replace(ROW, edit="b", drift_nats=4.0), replace(ROW, recipe="lawf", drift_nats=1.0, min_p=0.95),
            replace(ROW, when="end", acquired=False), replace(ROW, when="end", edit="b")]
    found = {(one.when, one.recipe): one for one in summarize(rows)}
    assert list(found) == [("equal", "sft"), ("equal", "lawf"), ("end", "sft")]
    assert found["equal", "sft"].drift_mean == 3.0 and found["equal", "sft"].acquired == 1.0
    assert found["equal", "lawf"].acquired == 0.5  # of two edits it got to one
    assert found["end", "sft"].acquired == 0.5
    assert bootstrap(rows[:2]) == (2.0, 4.0)
    assert [one.recipe for one in summarize([replace(ROW, recipe=name) for name in ("lawf", "lawf_paper 128", "sft_kl 1", "sft")])] == [
        "sft", "sft_kl 1", "lawf_paper 128", "lawf"]
    assert bootstrap([replace(ROW, seed=seed, drift_nats=float(seed)) for seed in range(5)]) == (2.0, 2.0)


def test_the_table_fits_a_narrow_terminal() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    wide = replace(ROW, recipe="lawf_paper 128", steps=128, seconds=10.5, drift_nats=2.5e-3, flips=0.333, generality=0.9, locality=1.0)
    console.print(summary_table(summarize([wide, replace(wide, edit="b")]), "equal", Theme(colour=False, plain=False)))
    line = next(line for line in console.export_text().splitlines() if "lawf_paper 128" in line)
    assert "…" not in line and "33.3%" in line and "2.5e-3" in line and line.rstrip().endswith("100.0%")


def test_little_drift_without_the_fix_is_not_shown_as_the_best() -> None:
    rows = [ROW, replace(ROW, edit="b"), replace(ROW, recipe="lawf", drift_nats=1e-9)]  # got to one of two edits
    table = summary_table(summarize(rows), "equal", Theme(colour=True, plain=False))
    looks = {str(cell): cell.style for cell in table.columns[0].cells if isinstance(cell, Text)}
    assert looks["sft"] == Theme(colour=True, plain=False).rich("good") and looks["lawf"] == ""


@pytest.fixture(scope="module")
def task(demo_engine: Engine) -> Task:
    return make_tasks(demo_engine, load_edits()[:1], 0.95)[0]


@pytest.fixture
def wild(demo_engine: Engine) -> Iterator[Adapter]:
    """An adapter that changes much."""
    adapter = Adapter.fresh(demo_engine.model, Settings(), "demo")
    weights = adapter.snapshot()
    generator = torch.Generator().manual_seed(0)
    adapter.restore({name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in weights.items()})
    yield adapter
    adapter.remove()


def test_a_kept_reference_measures_what_measuring_drift_measures(demo_engine: Engine, demo_probe_set: ProbeSet) -> None:
    probes = demo_probe_set.probes[:40]
    reference = Reference(demo_engine, probes)
    assert reference.measure().drift_nats == 0
    adapter = Adapter.fresh(demo_engine.model, Settings(), "demo")
    try:
        weights = adapter.snapshot()
        adapter.restore({name: value + 0.02 for name, value in weights.items()})
        found = reference.measure()
        assert found == measure_drift(demo_engine, adapter, probes) and found.drift_nats > 0
    finally:
        adapter.remove()


def test_answers_judged_by_one_forward_are_those_of_free_generation(demo_engine: Engine, demo_probe_set: ProbeSet, task: Task, wild: Adapter) -> None:
    with wild.off():
        meter = Meter(demo_engine, ProbeSet(demo_probe_set.probes[:2]))
    pairs = (*task.neighbours, *demo_probe_set.probes[:20])
    free = greedy_answers(demo_engine.model, [prompt for prompt, _ in pairs], demo_engine.end_ids, 96, kind=demo_engine.cache_kind)
    exact = [list(answer) == list(given) for (_, answer), given in zip(pairs, free, strict=True)]
    assert meter._exact(pairs) == exact and not all(exact)


def test_every_recipe_is_read_where_it_first_holds_and_at_its_end_and_the_base_stays(
        demo_engine: Engine, demo_probe_set: ProbeSet, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "PEER_STEPS", 24)
    monkeypatch.setattr(objective, "PEERS", (Peer("sft", 0.0, (24,)), Peer("lawf_paper", None, (2, 24))))
    ids = torch.tensor([list(task.case.prompt_ids)])
    with torch.no_grad():
        before = demo_engine.model(input_ids=ids).logits
    rows = run(demo_engine, ProbeSet(demo_probe_set.probes[:20], demo_probe_set.replay), [task], 1, Settings())
    found = {(row.when, row.recipe): row for row in rows}
    assert set(found) == {("equal", "sft"), ("end", "sft"), ("equal", "lawf_paper"), ("end", "lawf_paper 2"), ("end", "lawf_paper 24"),
                          ("equal", "lawf"), ("end", "lawf")}
    for row in rows:
        if row.when == "equal":
            assert row.acquired and row.min_p >= 0.95
    assert found["equal", "sft"].steps < 24 == found["end", "sft"].steps
    assert not found["end", "lawf_paper 2"].acquired and found["end", "lawf_paper 2"].min_p < 0.5
    assert found["equal", "sft"].seconds < found["end", "sft"].seconds
    assert 0 < found["equal", "lawf"].drift_nats < found["equal", "sft"].drift_nats
    with torch.no_grad():
        assert torch.equal(demo_engine.model(input_ids=ids).logits, before)


def test_the_command_prints_one_object_of_its_schema(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def two_rows(*arguments: Any) -> list[Row]:
        for row in (ROW, replace(ROW, when="end")):
            arguments[-1](row)
        raise KeyboardInterrupt  # what was read so far is summed up

    monkeypatch.setattr(objective, "run", two_rows)
    monkeypatch.setattr("lawf_repl.engine.base.load_engine", lambda settings: demo_engine)
    assert main(["bench", "objective", "--edits", "1", "--seeds", "2", "--json"]) == 130
    printed = capsys.readouterr()
    value = json.loads(printed.out)
    assert value["schema"] == "lawf.bench/1" and value["complete"] is False and value["edits"] == 1 and value["seeds"] == 2
    assert [one["when"] for one in value["summaries"]] == ["equal", "end"] and value["rows"][0]["edit"] == "a"
    assert "seed 0" in printed.err


@pytest.mark.parametrize(("arguments", "word"), [
    (["--edits", "0"], "at least 1"), (["--seeds", "-1"], "at least 1"), (["--model", "x"], "leave out --model"),
    (["--adapter", "x"], "leave out --adapter"),
])
def test_bad_arguments_are_one_line(arguments: list[str], word: str, capsys: Any) -> None:
    assert main(["bench", "objective", *arguments]) == 2
    printed = capsys.readouterr()
    assert word in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_a_change_where_the_base_was_undecided_is_counted_apart_and_the_first_change_decides() -> None:
    batch = make_batch([((1,), (5, 6)), ((1,), (7, 8)), ((1,), (9, 9))], torch.device("cpu"))
    sure, torn, other = torch.tensor([0.9, 0.1]), torch.tensor([0.505, 0.495]), torch.tensor([0.2, 0.8])
    base = torch.stack([torn, sure, sure, torn, sure, sure]).log()
    adapted = torch.stack([other, other, other, other, sure, sure]).log()
    found = _changes(batch, base, adapted)
    assert (found.tokens, found.flipped, found.tied) == (6, 1, 1)  # the second row changes first where the base was sure
