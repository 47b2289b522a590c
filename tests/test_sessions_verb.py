"""`lawf sessions`: every file is a row, in the order and choice that was asked for, and what does not hold is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from lawf_repl import selection, store
from lawf_repl.cli import main
from lawf_repl.digest import Digest, read_digest
from lawf_repl.errors import UsageError
from lawf_repl.parser import COLUMNS
from lawf_repl.selection import kept_by, sorted_by
from lawf_repl.store import Finding
from lawf_repl.ui.sessions import sessions_table
from lawf_repl.ui.theme import Theme
from tests import saved
from tests.test_house import loaded_by
from tests.test_render import rendered, unsafe

EXAMPLES = Path(__file__).parent.parent / "sessions"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAWF_SESSIONS", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["sessions", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sessions: whole, one that was only asked, and one that is none."""
    place = tmp_path / "sessions"
    place.mkdir()
    told = saved.events(place)
    saved.write(place / "whole.jsonl", told[:-1])  # without the adapter that is gone
    header = {**saved.HEADER, "created": "2026-12-01T00:00:00.000+00:00", "model": {**saved.HEADER["model"], "id": "other"}}  # type: ignore[dict-item]
    saved.write(place / "asked.jsonl", told[:3], header)
    (place / "broken.jsonl").write_bytes(b"\xff\xfe\x1b[31m\n")
    return place


def names(out: str) -> list[str]:
    return [line.split()[0] for line in out.partition("\n\n")[0].splitlines()[1:]]


def test_every_file_is_a_row(run: Run, folder: Path) -> None:
    code, out, err = run()
    assert code == 0 and not err and names(out) == ["asked", "whole", "broken"]
    assert out.splitlines()[0].split() == list(COLUMNS)
    assert "owner/model" in out and saved.PROMPT in out and "yes" in out and "1.2e-06" in out and "2026-11-24" in out
    assert "is not a lawf session" in out.splitlines()[-1] and "\x1b" not in out


def test_rows_as_json(run: Run, folder: Path) -> None:
    found = json.loads(run("--json")[1])
    assert found["schema"] == "lawf.sessions/1" and [row["name"] for row in found["sessions"]] == ["asked", "whole", "broken"]
    asked, whole, broken = found["sessions"]
    assert (whole["anchors"], whole["fixed"], whole["drift_nats"], whole["prompt"], whole["troubles"]) == (1, True, 1.2e-6, saved.PROMPT, [])
    assert (asked["fixed"], asked["anchors"], asked["model"]) == (None, 0, "other")
    assert broken["readable"] is False and broken["troubles"] and broken["date"] is None and "holds" not in whole


def test_a_damaged_line_is_said_in_its_row(run: Run, folder: Path) -> None:
    saved.spoiled(folder / "whole.jsonl", 4, b"{\n")
    _, out, _ = run("--filter", "name=whole")
    assert f"! damaged  {saved.PROMPT[:24]}" in out and "\n\nwhole.jsonl: line 4: it is damaged: expected one JSON object; restore" in out


@pytest.mark.parametrize("number", range(2, 8))
def test_what_a_damaged_line_held_is_no_fault_of_the_lines_that_refer_to_it(folder: Path, number: int) -> None:
    lines = (folder / "whole.jsonl").read_bytes().splitlines(keepends=True)
    saved.spoiled(folder / "whole.jsonl", number, b"[" + lines[number - 1][1:])
    assert [found.line for found in store.verify(folder / "whole.jsonl")] == [number]


def test_a_file_that_cannot_be_read_makes_no_row_wide(run: Run, folder: Path) -> None:
    said = "is not a lawf session: expected {\"lawf_session\": 1, ...} in line 1"
    table, below = run()[1].split("\n\n")
    assert all(len(line.rstrip()) <= 100 for line in table.splitlines()) and "! cannot be read" in table and said not in table
    assert below == f"broken.jsonl: {said}\n" and run("--verify")[1].count(said) == 1
    long = replace(ROWS[0], prompt="word " * 60, path=Path("/s/" + "n" * 50 + ".jsonl"))
    text = rendered(sessions_table([*ROWS, long], Theme(plain=True), None), 1000)
    assert all(word in text for word in COLUMNS) and "n" * 50 in text and max(len(line.rstrip()) for line in text.splitlines()) <= 145


def test_verify_names_what_does_not_hold(run: Run, folder: Path) -> None:
    (folder / "broken.jsonl").unlink()
    code, out, _ = run("--verify")
    assert code == 0 and "2 of 2 sessions hold" in out and "FAILS" not in out
    (folder / "whole.adapter" / "adapter_config.json").write_text("[]")
    code, out, _ = run("--verify")
    assert code == 1 and "1 of 2 sessions hold" in out
    assert [line for line in out.splitlines() if line.startswith("whole.jsonl: line 16: adapter: ")]
    code, out, _ = run("--verify", "--json")
    rows = {row["name"]: row for row in json.loads(out)["sessions"]}
    assert code == 1 and rows["asked"]["holds"] and not rows["whole"]["holds"] and rows["whole"]["findings"][0]["line"] == 16


def test_verify_counts_what_is_no_session(run: Run, folder: Path) -> None:
    code, out, _ = run("--verify")
    assert code == 1 and "2 of 3 sessions hold" in out
    assert [line for line in out.splitlines() if line.startswith("broken.jsonl: is not a lawf session: ")]


def test_verify_sees_a_flipped_digit(run: Run, folder: Path) -> None:
    path = folder / "whole.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.41", b"0.42", 1))
    code, out, _ = run("--verify", "--filter", "whole")
    assert code == 1 and "line 4: it is not as lawf wrote it" in out


@pytest.mark.parametrize(("arguments", "said"), [(("nowhere",), "nothing there"), (("sessions/whole.jsonl",), "found a file"),
                                                 (("sessions", "--sessions", "sessions"), "not both"), (("--sort", "size"), "--sort"),
                                                 (("--filter", "drift>x"), "expected a number"), (("--filter", "fixed=maybe"), "fixed=unknown")])
def test_bad_usage_is_one_line(run: Run, folder: Path, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and not out and said in err and err.count("\n") == 1


def test_an_empty_folder_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    assert run()[:2] == (0, f"no session in {tmp_path / 'sessions'}\n")
    saved.whole(tmp_path / "sessions")
    assert run("--filter", "nothing like it")[1] == "no session matches\n"


ROWS = [Digest(Path(f"/s/{name}.jsonl"), model, date, date, prompt, 1, 1, anchors, 1, compared, right, drift, 208)
        for name, model, date, prompt, anchors, compared, right, drift in (
            ("b", "Qwen3", "2026-11-02T10", "capital", 3, 1, 1, 1e-6), ("A", "llama", "2026-10-01T10", "Order", 10, 1, 0, 2e-5),
            ("c", "qwen2", "2026-11-03T10", "who", 1, 0, 0, None))] + [Digest(Path("/s/0.jsonl"), troubles=(Finding(None, "is no session"),))]


@pytest.mark.parametrize(("column", "order"), [
    ("name", ["0", "A", "b", "c"]), ("model", ["A", "c", "b", "0"]), ("prompt", ["b", "A", "c", "0"]), ("anchors", ["c", "b", "A", "0"]),
    ("fixed", ["b", "A", "0", "c"]), ("drift", ["b", "A", "0", "c"]), ("date", ["c", "b", "A", "0"])])
def test_sorting(column: str, order: list[str]) -> None:
    assert [row.name for row in sorted_by(ROWS, column)] == order
    there = [name for name in order if name not in {"name": "", "fixed": "0c", "drift": "0c"}.get(column, "0")]
    back = [row.name for row in sorted_by(ROWS, column, reverse=True)]
    assert back[:len(there)] == there[::-1] and sorted(back) == sorted(order)


@pytest.mark.parametrize(("filters", "left"), [
    (["qwen"], "bc"), (["model=QWEN"], "bc"), (["name=a"], "A"), (["capital"], "b"), (["fixed=yes"], "b"), (["fixed=no"], "A"),
    (["fixed=unknown"], "c"), (["anchors=3"], "b"),
    (["anchors>2"], "bA"), (["anchors<2"], "c"), (["drift>1e-5"], "A"), (["drift<1e-5"], "b"), (["date=2026-11"], "bc"),
    (["date<2026-11"], "A"), (["date>2026-11-03"], "c"), (["qwen", "fixed=yes"], "b"), ([], "bAc0"),
    (["drift > 1e-5"], "A"), (["prompt=x=y"], "")])
def test_filters(filters: list[str], left: str) -> None:
    keep = kept_by(filters)
    assert "".join(row.name for row in ROWS if keep(row)) == left


@pytest.mark.parametrize("text", ["name<a", "fixed>1", "drift=", "anchors>many", "fixed=YES!"])
def test_a_filter_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--filter"):
        kept_by([text])


@pytest.mark.parametrize("text", ["drft>1", "x=y", "size < 3", "Name=a"])
def test_a_condition_on_what_is_no_column_is_refused_with_their_names(text: str) -> None:
    with pytest.raises(UsageError, match=rf"--filter {text}: \w+ is no column: expected one of {', '.join(COLUMNS)}; prompt={text} looks for"):
        kept_by([text])
    assert selection.COLUMNS == COLUMNS


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_row_is_a_line_of_a_terminal(width: int) -> None:
    long = replace(ROWS[0], prompt="漢字" * 100 + "\x1b[31m\n", path=Path("/s/" + "n" * 90 + "\u202e.jsonl"))
    text = rendered(sessions_table([*ROWS, long], Theme(), width, {long.path}), width)
    assert len(text.splitlines()) == len(ROWS) + 3 and all(cell_len(line) <= width for line in text.splitlines())
    assert unsafe(text) == [] and ("2e-05" in text or "2.0e-05" in text) and "holds" in text


def test_only_what_is_needed_is_read(folder: Path) -> None:
    """A long answer is not parsed: what stands in it is checked by its sum alone."""
    path = folder / "whole.jsonl"
    plain = read_digest(path)
    lines = path.read_bytes().splitlines()
    assert plain.troubles == () and plain.changed == json.loads(lines[-1])["at"]
    told = saved.events(folder)
    told[2] = {"type": "completion", "at": told[2]["at"], "node": "not a number"}
    assert read_digest(saved.write(path, told)).troubles == ()
    assert read_digest(saved.write(path, told, sums=False)).troubles != ()


def test_the_last_training_decides(tmp_path: Path) -> None:
    told = saved.events(tmp_path)
    again: list[dict[str, Any]] = [*told, next(event for event in told if event["type"] == "training") | {"node": 3, "parent": 2}]
    row = read_digest(saved.write(tmp_path / "a.jsonl", again))
    assert row.fixed is None and row.trainings == 2
    wrong = next(event for event in told if event["type"] == "rerun") | {"fixed": False}
    row = read_digest(saved.write(tmp_path / "a.jsonl", [*again, wrong]))
    assert row.fixed is False and (row.right, row.compared) == (0, 1)


def test_examples_hold_and_no_model_library_is_loaded(tmp_path: Path) -> None:
    copy = tmp_path / "sessions"
    shutil.copytree(EXAMPLES, copy)
    loaded = loaded_by(f"from lawf_repl.cli import main; assert main(['sessions', {str(copy)!r}, '--verify']) == 0")
    assert not {"torch", "transformers", "peft"} & set(loaded)
