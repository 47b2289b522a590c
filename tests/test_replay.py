"""Replaying: what is the same passes, what is otherwise is found at its first token, and why is told apart."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyte
import pytest
from rich.console import Console

from lawf_repl import store
from lawf_repl.agreement import TIE, Row, row_json
from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.errors import FixError
from lawf_repl.measure.probes import ProbeSet
from lawf_repl.measure.prompts import demo_probes
from lawf_repl.replay import replay, settings_for
from lawf_repl.restore import restore
from lawf_repl.session import Session, open_session
from lawf_repl.store.disk import directory_sha256
from lawf_repl.ui.replay import row_view
from lawf_repl.ui.theme import Theme
from lawf_repl.verbs.replay import junit_xml, progress_of, teller
from lawf_repl.verbs.story import Story

EXAMPLES = Path(__file__).parent.parent / "sessions"
KINDS = ("fact", "field", "instruction", "tool", "term", "identity")
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def fact(tmp_path: Path) -> Path:
    """A copy of an example that a test may damage."""
    shutil.copytree(EXAMPLES / "fact.adapter", tmp_path / "fact.adapter")
    return Path(shutil.copy(EXAMPLES / "fact.jsonl", tmp_path))


def changed(path: Path, type_: str, change: Change) -> Path:
    """The file with its first event of a type changed; "header" is its first line. Sums of lines are left out, as older versions did."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(next(event for event in lines if event.get("type", "header") == type_))
    path.write_text("".join(json.dumps({key: value for key, value in event.items() if key != "sum"}) + "\n" for event in lines))
    return path


def again(path: Path, engine: Engine, retrain: bool = False, probes: ProbeSet | None = None) -> Row:
    return replay(path, engine, settings_for(store.load(path), Settings()), probes or ProbeSet(), retrain)


def shown(row: Row, width: int = 100) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(row_view(row, Theme(plain=True), TIE))
    return capture.get()


@pytest.mark.parametrize("kind", KINDS)
def test_each_example_goes_as_recorded(kind: str, demo_engine: Engine, demo_probe_set: ProbeSet) -> None:
    row = again(EXAMPLES / f"{kind}.jsonl", demo_engine, probes=demo_probe_set if kind == "fact" else None)
    assert row.ok and row.first_divergence is None and not row.changed and not row.notes
    assert row.before_matches and row.continuations_match and row.anchors_match and row.after_matches
    if kind == "fact":
        assert row.drift_nats is not None and row.drift_then is not None and abs(row.drift_nats - row.drift_then) < 1e-6
    assert demo_engine.fingerprint()["config_sha256"] and not any("lora" in name for name, _ in demo_engine.model.named_parameters())


def test_an_answer_that_was_stopped_goes_on_as_if_it_had_not_been(demo_engine: Engine, tmp_path: Path) -> None:
    prompt, polls = "What is the capital of France?", iter([False, False, True])
    whole = Session(demo_engine, Settings())
    list(whole.ask(prompt))
    session = open_session(demo_engine, Settings(), path=tmp_path / "stopped.jsonl")
    list(session.ask(prompt, lambda: next(polls)))
    assert session.node is not None and session.node.completion.finish == "interrupted"
    list(session.go_on(""))
    assert whole.node is not None and session.node.completion.ids == whole.node.completion.ids and not session.anchors()
    with pytest.raises(FixError, match="the fix is empty"):
        session.go_on("")
    session.undo()
    session.redo()
    path = session.place
    session.close()
    assert path is not None and not store.verify(path)
    restored = restore(path, demo_engine, Settings(), ProbeSet())
    assert [node.completion.ids for node in restored.nodes] == [node.completion.ids for node in session.nodes]
    restored.close()
    row = again(path, demo_engine)
    assert row.ok and row.continuations_match
    full = Session(demo_engine, Settings(max_tokens=3))
    list(full.ask(prompt))
    with pytest.raises(FixError, match="raise max_tokens"):
        full.go_on("")
    full.set_setting("max_tokens", "50")
    list(full.go_on(""))
    assert full.node is not None and full.node.completion.ids == whole.node.completion.ids


def second_instead(path: Path, p: float | None = None, of_first: float | None = None) -> Path:
    """The file says that the token in Sydney's place was the second most probable, and of which probability."""
    def change(event: dict[str, Any]) -> None:
        token = next(one for one in event["tokens"] if one["text"] == " Sydney")
        top, second = token["alternatives"][:2]
        assert top["id"] == token["id"]
        if p is not None:
            second["p"], top["p"] = p, top["p"] if of_first is None else of_first
            token["alternatives"][:2] = [second, top]
        token.update(id=second["id"], text=second["text"], p=second["p"])
        event["text"] = event["text"].replace(" Sydney", second["text"])

    def follow(event: dict[str, Any]) -> None:
        event["removed_ids"][0] = ids_of_first_answer(path)[event["position"]]

    changed(path, "completion", change)
    return changed(path, "correction", follow)


def ids_of_first_answer(path: Path) -> list[int]:
    event = next(json.loads(line) for line in path.read_text().splitlines() if '"type": "completion"' in line)
    return [token["id"] for token in event["tokens"]]


def test_another_first_token_is_found_with_both_texts_and_both_distributions(fact: Path, demo_engine: Engine) -> None:
    row = again(second_instead(fact), demo_engine)
    found = row.first_divergence
    assert row.status == "diverged" and row.before_matches is False and found is not None and found.where == "first answer"
    assert found.now == "The capital of Australia is Sydney." and found.then != found.now
    assert found.now_token is not None and found.now_token.text == " Sydney" and found.then_token is not None
    assert found.then_token.text != " Sydney" and found.position == ids_of_first_answer(fact).index(found.then_token.id)
    text = shown(row)
    assert "DIVERGES" in text and "then" in text and "now" in text and "·Sydney" in text
    assert row_json(row)["first_divergence"]["position"] == found.position and not row_json(row)["ok"]
    said = str(ElementTree.fromstring(junit_xml([row])).findtext("testcase/failure"))
    assert f"then: {found.then}" in said and f"now: {found.now}" in said and "p now: ' Sydney' 0.9" in said and "p then: " in said
    assert row.anchors_match and row.after_matches, "what comes behind it is still checked"


def test_anchors_that_are_others_than_then_are_a_divergence(fact: Path, demo_engine: Engine) -> None:
    def change(event: dict[str, Any]) -> None:
        event["anchors"][0]["p_ref"] += 0.2

    row = again(changed(fact, "accept", change), demo_engine)
    assert (row.before_matches, row.continuations_match, row.anchors_match, row.after_matches) == (True, True, False, True)
    assert row.status == "diverged" and row.first_divergence is not None and row.first_divergence.where == "anchors"


def test_an_adapter_that_does_not_give_the_answer_after_training_diverges_there(fact: Path, demo_engine: Engine) -> None:
    """The adapter of another session, under this one's name and with a sha256 that fits."""
    folder = fact.parent / "fact.adapter"
    shutil.rmtree(folder)
    shutil.copytree(EXAMPLES / "tool.adapter", folder)
    row = again(changed(fact, "adapter", lambda event: event.update(sha256=directory_sha256(folder))), demo_engine)
    assert row.status == "diverged" and row.after_matches is False and row.before_matches and row.anchors_match
    assert row.first_divergence is not None and row.first_divergence.where == "after training"


def test_a_damaged_adapter_is_no_divergence_and_retraining_needs_none(fact: Path, demo_engine: Engine) -> None:
    weights = fact.parent / "fact.adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    row = again(fact, demo_engine)
    assert row.status == "error" and "sha256" in row.error and "--retrain" in row.error and row.before_matches
    row = again(fact, demo_engine, retrain=True)
    assert row.ok and row.retrained and row.after_matches


def test_another_tokenizer_is_told_apart_and_nothing_is_generated(fact: Path, demo_engine: Engine) -> None:
    row = again(changed(fact, "header", lambda header: header["model"].update(tokenizer_sha256="0" * 64)), demo_engine)
    assert row.status == "changed" and row.changed[0] == "the tokenizer differs from the one this was recorded with" and row.answers == 0


@pytest.mark.parametrize(("key", "name"), [("config_sha256", "the model's config"), ("template_sha256", "the chat template")])
def test_on_another_model_a_divergence_is_not_held_against_the_session(key: str, name: str, fact: Path, demo_engine: Engine) -> None:
    changed(fact, "header", lambda header: header["model"].update({key: "0" * 64}))
    row = again(fact, demo_engine)
    assert row.ok and f"{name} differs from the one this was recorded with" in row.changed
    row = again(changed(fact, "accept", lambda event: event["anchors"][0].update(p_ref=0.9)), demo_engine)
    assert row.status == "changed" and row.first_divergence is not None


def test_other_versions_are_said(fact: Path, demo_engine: Engine) -> None:
    row = again(changed(fact, "note", lambda event: event["versions"].update(torch="1.0")), demo_engine)
    assert row.ok and any(text.startswith("torch is ") and text.endswith("was 1.0 when this was recorded") for text in row.changed)


def test_a_near_tie_counts_as_equal_and_is_reported(fact: Path, demo_engine: Engine) -> None:
    """The file says that another token was the most probable, by less than the tolerance; by more it is a divergence."""
    top = next(one["p"] for one in json.loads(fact.read_text().splitlines()[3])["tokens"] if one["text"] == " Sydney")
    row = again(second_instead(fact, top + TIE / 2), demo_engine)
    assert row.before_matches and len(row.ties) >= 1 and row.ties[0].where == "first answer" and row.ties[0].now == " Sydney"
    assert row.ties[0].difference <= TIE and "they count as equal" in shown(row, 120)


def test_what_is_no_near_tie_is_a_divergence(fact: Path, demo_engine: Engine) -> None:
    row = again(second_instead(fact, 0.99, 0.01), demo_engine)
    assert row.status == "diverged" and not row.ties


def test_one_bad_file_or_path_does_not_stop_the_rest(fact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    junit = tmp_path / "out.xml"
    assert main(["replay", str(tmp_path / "none.jsonl"), str(tmp_path), "--junit", str(junit), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "lawf.replay/1" and [row["status"] for row in found["rows"]] == ["error", "error", "ok"]
    assert {"ok", "first_divergence", "before_matches", "anchors_match", "after_matches", "drift_nats"} <= found["rows"][0].keys()
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("3", "2", "0")
    changed(fact, "accept", lambda event: event["anchors"][0].update(p_ref=0.9))
    assert main(["replay", str(tmp_path), "--plain"]) == 1
    out = capsys.readouterr().out
    assert "DIVERGES" in out and "not replayed: " in out and "1 diverged" in out


def test_nothing_to_replay_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "no" / "x.xml")
    for arguments in ([str(tmp_path)], ["nowhere"], [str(tmp_path / "x.jsonl"), "neither"], [str(EXAMPLES), "--junit", nowhere]):
        assert main(["replay", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error


def test_junit_is_xml_whatever_the_texts() -> None:
    row = Row("a\x00b\ud800<&\x1b", "error", error="\x07 ]]> \ufffe")
    assert ElementTree.fromstring(junit_xml([row, replace(row, status="ok")])).get("tests") == "2"


def moved_to_the_end(path: Path, type_: str) -> Path:
    """The file with its events of a type behind all others, where /save puts those of adapters when it writes a copy elsewhere."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines.sort(key=lambda event: event.get("type") == type_)
    path.write_text("".join(json.dumps({key: value for key, value in event.items() if key != "sum"}) + "\n" for event in lines))
    return path


def test_an_adapter_that_was_saved_late_is_checked_all_the_same(fact: Path, demo_engine: Engine) -> None:
    row = again(moved_to_the_end(fact, "adapter"), demo_engine)
    assert row.ok and row.after_matches and not row.notes
    shutil.rmtree(fact.parent / "fact.adapter")
    assert "--retrain" in again(fact, demo_engine).error


def test_what_hangs_on_an_adapter_that_was_never_saved_is_said_in_one_line(fact: Path, demo_engine: Engine) -> None:
    lines = [line for line in fact.read_text().splitlines(keepends=True) if '"type": "adapter"' not in line]
    fact.write_text("".join([*lines, lines[-2]]))  # run again twice
    row = again(fact, demo_engine)
    assert row.ok and row.after_matches is None
    assert [note for note in row.notes if "not checked" in note] == [
        "not checked: lines 21, 22 and 23, whose adapter was not saved before lawf ended; --retrain makes it again"]


@pytest.mark.parametrize("id_", [10**30, 5000, -1])
@pytest.mark.parametrize("key", ["prompt_ids", "tokens"])
def test_a_token_that_the_model_does_not_have_is_refused_before_it_is_looked_up(key: str, id_: int, fact: Path, demo_engine: Engine) -> None:
    def change(event: dict[str, Any]) -> None:
        if key == "tokens":
            event[key][0]["id"] = id_
        else:
            event[key][0] = id_

    for type_ in ("completion", "prompt"):
        if type_ == "completion" or key == "prompt_ids":
            row = again(changed(Path(shutil.copy(EXAMPLES / "fact.jsonl", fact)), type_, change), demo_engine)
            assert row.status == "error" and f"there is no token {id_}" in row.error


class Terminal(io.StringIO):
    """Standard output and standard error on one terminal."""

    def isatty(self) -> bool:
        return True


def test_rows_stand_above_the_bar_and_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Terminal()
    monkeypatch.setattr("sys.stdout", written)
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    screen = pyte.Screen(80, 24)
    stream, seen = pyte.Stream(screen), 0
    story = Story(Settings())
    with progress_of([Path("one.jsonl"), Path("two.jsonl")], Settings(), story) as show:
        for done in range(3):
            show(done)
            teller(story)(Row(f"row-{done}.jsonl", "ok", drift_nats=1e-6))
            stream.feed(written.getvalue()[seen:].replace("\n", "\r\n"))
            seen = len(written.getvalue())
            lines = [line for line in screen.display if line.strip()]
            assert [line.split()[-1] for line in lines if "row-" in line] == [f"row-{n}.jsonl" for n in range(done + 1)]
            assert not any("row-" in line and "replaying" in line for line in lines)
            if done < 2:
                assert f"{done}/2" in lines[-1] and ["one.jsonl", "two.jsonl"][done] in lines[-1]
    stream.feed(written.getvalue()[seen:].replace("\n", "\r\n"))
    assert not any("replaying" in line for line in screen.display), "it goes when all is done"


def test_what_only_training_needs_is_not_made(fact: Path, demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> object:
        raise AssertionError("variations were made")

    monkeypatch.setattr("lawf_repl.session.variations", none)
    row = again(fact, demo_engine, probes=ProbeSet(demo_probes(demo_engine).probes[:3]))
    assert row.ok and row.drift_nats is not None


def test_no_line_of_a_row_is_wider_than_80_cells() -> None:
    row = Row("one.jsonl", before_matches=True, continuations_match=True, anchors_match=True, after_matches=True, drift_nats=1e-6, drift_then=1e-6)
    assert [line.rstrip()[:8] for line in shown(row, 80).splitlines()] == ["same    ", "  first ", "  drift "]
