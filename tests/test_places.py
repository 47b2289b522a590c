"""Which folder is meant, and that no name leads out of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lawf_repl.cli import main
from lawf_repl.errors import SessionError, UsageError
from lawf_repl.places import (
    check_name,
    find_all,
    find_session,
    find_sessions,
    find_source,
    last_session,
    named,
    sessions_in,
    sessions_place,
    typed,
    typed_there,
)


@given(st.text(max_size=60))
@example("..")
@example("a/../../b")
@example("c:\\x")
@example("nul.jsonl")
@example("\u202egnp")
def test_no_name_leads_out_of_the_folder_and_what_is_refused_is_one_printable_line(name: str) -> None:
    folder = Path("/somewhere/sessions")
    try:
        path = named(name, folder)
    except UsageError as error:
        assert str(error).isprintable()
        return
    assert path.parent == folder and Path(os.path.normpath(path)) == path and path.suffix == ".jsonl" and path.stem not in ("", ".", "..")
    assert check_name(check_name(name)) == check_name(name)


def test_flag_then_variable_then_the_folder_here_then_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert sessions_place(None, {}).path == tmp_path / "data" / "lawf" / "sessions"
    (tmp_path / "sessions").mkdir()
    assert sessions_place(None, {}).path == tmp_path / "sessions"
    assert sessions_place(None, {"LAWF_SESSIONS": "other"}).path == tmp_path / "other"
    assert sessions_place("flag", {"LAWF_SESSIONS": "other"}).path == tmp_path / "flag"
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="expected a folder, found a file"):
        sessions_place("file", {})


def test_a_session_is_found_by_path_by_name_and_in_folders_once(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    one, two = folder / "one.jsonl", folder / "two.jsonl"
    one.touch()
    two.touch()
    (folder / ".hidden.jsonl").touch()
    assert find_session("one", folder) == find_session("one.jsonl", folder) == find_session(str(one), tmp_path) == one
    assert find_sessions(["two", str(folder)], folder) == [two, one]
    for missing in ("three", "three.jsonl", str(folder / "three"), "../one"):
        with pytest.raises((SessionError, UsageError)):
            find_session(missing, folder)
    os.utime(one, ns=(1, 1))
    assert last_session(folder) == two
    with pytest.raises(SessionError, match="no session in"):
        last_session(tmp_path / "nowhere")


def test_a_name_stands_for_its_session_where_an_adapter_may_be_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "fact.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert find_source(Path("fact"), folder) == find_source(Path("fact.jsonl"), folder) == folder / "fact.jsonl"
    for other in ("none", "x/fact", "./saved/fact.adapter", "../fact", "?"):
        assert find_source(Path(other), folder) == Path(other)
    Path("fact").mkdir()
    assert find_source(Path("fact"), folder) == Path("fact"), "what is there under that very name comes first"


def test_what_is_typed_is_a_name_or_a_whole_path(tmp_path: Path) -> None:
    assert typed("capital", tmp_path) == typed("capital.jsonl", tmp_path) == tmp_path / "capital.jsonl"
    assert typed(f"{tmp_path}/elsewhere/x", tmp_path) == tmp_path / "elsewhere" / "x.jsonl"
    for climbing in ("../x", "a/b", "."):
        with pytest.raises(UsageError):
            typed(climbing, tmp_path)
    with pytest.raises(UsageError, match="whole path that begins with / or ~"):
        typed("a/b", tmp_path)
    with pytest.raises(SessionError, match=r"no session capital in .*: lawf sessions lists them"):
        typed_there("capital", tmp_path)


def test_locate_says_where_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAWF_SESSIONS", str(tmp_path / "kept"))
    assert main(["locate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "lawf.locate/1" and set(found["places"]) == {"config", "sessions", "history", "answers", "logs"}
    assert found["places"]["sessions"] == {"path": str(tmp_path / "kept"), "exists": False, "why": "LAWF_SESSIONS"}
    assert main(["locate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and any("LAWF_SESSIONS" in line and "not there yet" in line for line in lines)
    assert main(["locate", "--sessions", str(tmp_path / "flag")]) == 0 and "--sessions" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/one", f"{'x' * 300}/one.jsonl", "é" * 200])
def test_a_name_that_the_system_refuses_is_one_line_and_stops_no_other(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.jsonl").touch()
    paths, missing = find_all([name, "one"], tmp_path)
    assert paths == [tmp_path / "one.jsonl"] and [text for text, _ in missing] == [name]
    for arguments in (["show", name], ["report", name, "-o", "x.html"], ["sessions", name], ["--sessions", name, "sessions"],
                      ["--sessions", name, "locate"]):
        code = main(arguments)
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1) or (code, error) == (0, ""), arguments


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    assert sessions_in(tmp_path / "nowhere") == []
    with pytest.raises(SessionError, match=r"cannot read .*: File name too long"):  # a refusal that root meets too
        sessions_in(tmp_path / ("x" * 300))
