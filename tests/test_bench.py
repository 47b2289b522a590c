"""The comparison with peers: its recipes are what they are called, its readings exact, its summaries right, its model left alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console
from rich.text import Text

from lawf_repl.bench import curves as course
from lawf_repl.bench import levers, objective, recipes
from lawf_repl.bench.objective import Meter, Row, Task, bootstrap, complete, make_tasks, read_rows, run, spread, summarize
from lawf_repl.bench.recipes import Peer, peer_loss
from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.demo.edits import load_edits
from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import make_batch
from lawf_repl.learn.objective import make_target
from lawf_repl.learn.train import Loop
from lawf_repl.measure.probes import ProbeSet, Reference, _changes, _looked, measure_drift
from lawf_repl.records import Anchor
from lawf_repl.session import Session
from lawf_repl.ui.bench import stream_table, summary_table
from lawf_repl.ui.plot import character_plot, svg_plot
from lawf_repl.ui.theme import Theme
from lawf_repl.verbs.bench import _known

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
        found, other = reference.measure(), measure_drift(demo_engine, adapter, probes)
        assert found.drift_nats == pytest.approx(other.drift_nats, rel=0.1) and found.drift_nats > 0  # rounding: 1e-8 of 7e-7
        assert other == replace(found, drift_nats=other.drift_nats)
        with adapter.off():
            assert measure_drift(demo_engine, adapter, probes).drift_nats == 0 == reference.measure().drift_nats
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
    name = spread(load_edits(), 1)[0]["name"]

    def two_rows(*arguments: Any) -> list[Row]:
        for row in (replace(ROW, edit=name), replace(ROW, edit=name, when="end")):
            arguments[5](row)
        raise KeyboardInterrupt  # what was read so far is summed up

    monkeypatch.setattr(objective, "run", two_rows)
    monkeypatch.setattr("lawf_repl.engine.base.load_engine", lambda settings: demo_engine)
    assert main(["bench", "objective", "--edits", "1", "--seeds", "2", "--json"]) == 130
    printed = capsys.readouterr()
    value = json.loads(printed.out)
    assert value["schema"] == "lawf.bench/1" and value["complete"] is False and value["edits"] == 1 and value["seeds"] == 2
    assert [one["when"] for one in value["summaries"]] == ["equal", "end"] and value["rows"][0]["edit"] == name
    assert "seed 0" in printed.err


@pytest.mark.parametrize(("arguments", "word"), [
    (["--edits", "0"], "at least 1"), (["--seeds", "-1"], "at least 1"), (["--model", "x"], "leave out --model"),
    (["--adapter", "x"], "leave out --adapter"), (["--stream", "0"], "at least 1"), (["--levers", "--plot"], "--levers and --plot are two"),
    (["--plot", "--rows", "x"], "leave it out"), (["--levers", "--svg", "x"], "give it with --plot"), (["--svg", "/none/x.svg"], "no such folder"),
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
    found = _changes(batch, *_looked(base, adapted))
    assert (found.tokens, found.flipped, found.tied) == (6, 1, 1)  # the second row changes first where the base was sure


def test_an_interrupted_bench_goes_on_where_it_was(
        demo_engine: Engine, demo_probe_set: ProbeSet, task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    over = [replace(ROW, edit=task.name), replace(ROW, edit=task.name, when="end")]
    half = [replace(ROW, edit=task.name, recipe="lawf_paper"), replace(ROW, edit=task.name, recipe="lawf_paper 32", when="end")]
    text = "".join(json.dumps(asdict(row)) + "\n" for row in (*over, *half)) + '{"recipe": "law'
    assert complete(read_rows(text)) == over == complete([*over, *half])  # the paper's recipe is over at its last step only
    (tmp_path / "rows").write_text(text)
    assert _known(tmp_path / "rows", complete) == over and read_rows((tmp_path / "rows").read_text()) == over
    trained: list[str] = []

    def trains(engine: Engine, meter: Meter, task: Task, seed: int, peer: Peer, target_p: float) -> Iterator[Row]:
        trained.append(peer.name)
        yield replace(ROW, recipe=peer.name, edit=task.name, seed=seed, when="end")

    monkeypatch.setattr(objective, "run_peer", trains)
    monkeypatch.setattr(objective, "run_ours", lambda *arguments: iter([replace(ROW, recipe="lawf", edit=task.name, when="end")]))
    heard: list[Row] = []
    rows = run(demo_engine, ProbeSet(demo_probe_set.probes[:2]), [task], 1, Settings(), heard.append, over)
    assert trained == ["sft_kl 0.25", "sft_kl 1", "lawf_paper"] and len(rows) == 6 and len(heard) == 4


def test_a_file_of_something_else_is_no_readings(tmp_path: Path, capsys: Any) -> None:
    for content in ("hello\n", '{"a": 1}\n', "[]\n"):
        (tmp_path / "rows").write_text(content)
        assert main(["bench", "objective", "--rows", str(tmp_path / "rows")]) == 2
        assert "does not hold the readings of a bench" in capsys.readouterr().err and (tmp_path / "rows").read_text() == content


def test_each_lever_changes_what_it_says(demo_engine: Engine, demo_probe_set: ProbeSet, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def ours(engine: Engine, meter: Meter, task: Task, seed: int, settings: Settings, probes: ProbeSet, way: type[Loop]) -> Iterator[Row]:
        seen.append((task.case.anchors[0].confidence, settings, len(probes.replay), way))
        yield replace(ROW, recipe="lawf", edit=task.name, when="equal")
        yield replace(ROW, recipe="lawf", edit=task.name, when="end", drift_nats=float(len(seen)))

    monkeypatch.setattr(levers, "run_ours", ours)
    rows = levers.run_levers(demo_engine, ProbeSet(demo_probe_set.probes[:2], demo_probe_set.replay[:3]), [task], 1, Settings(), lambda row: None)
    assert [row.recipe for row in rows] == [name for name, _ in levers.LEVERS] == [one.recipe for one in levers.summarize_levers(rows)]
    by_name = dict(zip((name for name, _ in levers.LEVERS), seen, strict=True))
    heard: list[Row] = []
    again = levers.run_levers(demo_engine, ProbeSet(demo_probe_set.probes[:2]), [task], 1, Settings(), heard.append, rows[1:])
    assert again[1:] == rows[1:] and heard == again[:1] and len(seen) == len(rows) + 1, "what is known is not trained again"
    seen.pop()
    assert by_name["as shipped"] == (1.0, Settings(), 3, Loop) and by_name["confidence 0.5"] == (0.5, Settings(), 3, Loop)
    assert by_name["neither"] == (1.0, replace(Settings(), variations=0), 0, Loop) and by_name["rank 8"][1].rank == 8
    assert len({str(found) for found in seen}) == len(seen)


def test_a_stream_counts_those_that_still_hold_and_leaves_the_base(demo_engine: Engine, demo_probe_set: ProbeSet) -> None:
    edits, settings = spread(load_edits(), 2), Settings(variations=8, rounds=1)
    rows = list(levers.run_stream(demo_engine, ProbeSet(demo_probe_set.probes[:8]), edits, settings))
    assert [(row.corrections, row.edit, row.hold) for row in rows] == [(1, edits[0]["name"], 1.0), (2, edits[1]["name"], 1.0)]
    assert all(row.drift_nats > 0 and row.steps > 1 for row in rows)
    session = Session(demo_engine, Settings())
    list(session.ask(edits[0]["prompt"]))
    assert session.node is not None and session.node.completion.text != edits[0]["right"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(stream_table(rows, Theme(colour=False, plain=True)))
    shown = console.export_text()
    assert "100.0%" in shown and edits[1]["name"][:20] in shown


def test_the_courses_begin_at_the_base_and_end_where_the_training_does(
        demo_engine: Engine, demo_probe_set: ProbeSet, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "PEER_STEPS", 8)
    monkeypatch.setattr(course, "PEERS", (Peer("sft", 0.0),))
    heard: list[Any] = []
    points = course.run_curves(demo_engine, ProbeSet(demo_probe_set.probes[:8]), [task], Settings(variations=8), heard.append)
    assert points == heard and {point.recipe for point in points} == {"sft", "lawf", "lawf by scale"}
    lines = course.curves(points)
    assert lines["sft"][0][1] == lines["lawf"][0][1] == pytest.approx(course.FEWEST_NATS) and lines["sft"][-1][0] > lines["sft"][0][0]
    assert lines["lawf by scale"][-1][0] > 0.95 > lines["lawf by scale"][0][0]
    assert lines["lawf by scale"][0][1] < lines["lawf by scale"][-1][1]


def test_the_plot_fits_its_width_and_the_file_is_well_formed() -> None:
    lines = {"sft": [(0.0, 1e-9), (0.5, 1e-5), (0.99, 3e-3)], "<b>&": [(0.1, 1e-7), (1.0, 1e-6)]}
    shown = character_plot(lines, 78, 20)
    assert max(map(len, shown.split("\n"))) <= 78 and "11 sft" in shown and "1e-3" in shown and "\x1b" not in shown
    root = ElementTree.fromstring(svg_plot(lines))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "<b>&" in texts and "1e-9" in texts
    places = [float(circle.get("cx", "0")) for circle in root.iter() if circle.tag.endswith("circle")]
    assert len(places) == 5 + 2 and min(places) >= 80
