"""Session files: what was written is read back, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lawf_repl import __version__, records, store
from lawf_repl.errors import SessionError
from lawf_repl.store import SessionFile, adapter_path, directory_sha256, lines, load, lock_path, open_to_append
from lawf_repl.store.lines import to_line
from tests import saved

MODEL = {"id": "demo", "revision": None, "config_sha256": "a", "tokenizer_sha256": "b", "template_sha256": "c", "dtype": "float32"}
SURROGATES_TOO = st.text(st.characters(exclude_categories=()), max_size=12)


def as_json_keeps_it(text: str) -> str:
    """JSON escapes are UTF-16: two surrogates that meet are one character there."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


TEXT = SURROGATES_TOO.map(as_json_keeps_it)
NUMBER = st.floats(allow_nan=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "capital.jsonl"


def written(path: Path, notes: int = 3) -> Path:
    with SessionFile.create(path, MODEL) as session:
        for number in range(notes):
            session.append("note", text=f"note {number} 豆包")
    return path


def refused(path: Path) -> str:
    with pytest.raises(SessionError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(path: Path) -> list[str]:
    return [event["text"] for event in load(path).events]


def test_what_was_appended_is_loaded_in_order(path: Path) -> None:
    with SessionFile.create(path, MODEL) as session:
        sent = [session.append(kind, ids=[1, 2], text="豆\ud800\n\x1b[31m") for kind in sorted(store.EVENT_TYPES)]
    loaded = load(path)
    assert list(loaded.events) == sent and loaded.dropped is None
    assert all(datetime.fromisoformat(event["at"]).utcoffset() is not None for event in sent)


def test_the_header_is_that_of_the_design(path: Path) -> None:
    written(path)
    header = json.loads(path.read_text("utf-8").splitlines()[0])
    assert list(header) == ["lawf_session", "id", "created", "lawf_version", "model"]
    assert (header["lawf_session"], header["lawf_version"], header["model"]) == (1, __version__, MODEL)
    assert load(path).header == header


def test_what_is_not_known_of_the_model_is_null(path: Path) -> None:
    SessionFile.create(path, {"id": "m", "quantize": "4bit"}).close()
    model = load(path).header["model"]
    assert set(model) == {*MODEL, "quantize"} and model["id"] == "m" and model["dtype"] is None


def test_the_file_and_its_lock_are_private(path: Path) -> None:
    before = os.umask(0)
    try:
        written(path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(one.stat().st_mode) for one in (path, lock_path(path))} == {0o600}


def test_each_event_is_on_the_disk_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(path.read_bytes())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with SessionFile.create(path, MODEL) as session:
        for number in range(3):
            session.append("note", text=str(number))
            assert synced[-1] == path.read_bytes() and len(load(path).events) == number + 1


def test_creating_over_an_existing_file_is_refused_and_leaves_it(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(SessionError, match="exists already"):
        SessionFile.create(path, MODEL)
    assert path.read_text() == "mine"
    path.unlink()
    written(path)  # the lock was let go


def test_a_second_writer_is_refused_until_the_first_has_closed(path: Path) -> None:
    with SessionFile.create(path, MODEL) as first:
        with pytest.raises(SessionError, match="in use by another lawf"):
            open_to_append(path)
        code = "import sys; from lawf_repl.store import open_to_append; open_to_append(sys.argv[1])"
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert "in use by another lawf" in other.stderr
        first.append("note", text="still mine")
    with open_to_append(path) as second:
        second.append("note", text="second")
    assert texts(path) == ["still mine", "second"]


def test_two_names_of_one_file_have_one_lock(path: Path, tmp_path: Path) -> None:
    written(path).parent.joinpath("link.jsonl").symlink_to(path)
    link = tmp_path / "link.jsonl"
    with open_to_append(path), pytest.raises(SessionError, match="in use"):
        open_to_append(link)
    path.write_bytes(path.read_bytes() + b'{"type"')
    with open_to_append(link) as session:
        session.append("note", text="through the link")
    assert link.is_symlink() and texts(path)[-1] == "through the link"


def test_a_file_cut_anywhere_in_its_last_line_loads_without_that_event(path: Path) -> None:
    content = written(path).read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(content)):
        path.write_bytes(content[:end])
        loaded = load(path)
        assert [event["text"] for event in loaded.events] == ["note 0 豆包", "note 1 豆包"]
        assert (loaded.dropped is None) == (end == start)
        if loaded.dropped:
            assert f"line 4 was cut after {end - start} bytes" in loaded.dropped
    assert loaded.dropped and "event: note" in loaded.dropped


def test_going_on_after_a_cut_drops_it_and_keeps_the_rest_byte_for_byte(path: Path) -> None:
    content = written(path).read_bytes()
    path.write_bytes(content + b'{"type": "training", "at": "20')
    with open_to_append(path) as session:
        assert session.loaded.dropped and "event: training" in session.loaded.dropped and len(session.loaded.events) == 3
        session.append("note", text="on")
    assert path.read_bytes().startswith(content) and texts(path)[3:] == ["on"]
    assert load(path).dropped is None and {one.name for one in path.parent.iterdir()} == {path.name, lock_path(path).name}


def test_a_file_cut_in_its_header_is_no_session(path: Path) -> None:
    header = written(path, notes=0).read_bytes()
    for end in range(len(header)):
        path.write_bytes(header[:end])
        assert "is not a lawf session" in refused(path)


@pytest.mark.parametrize("damage", [
    b"\n", b"{}\n", b"[]\n", b"nonsense\n", b'{"type": "note"}\n', b'{"type": "nope", "at": "x"}\n', b'{"type": ["note"], "at": "x"}\n',
    b'{"type": "note", "at": 3}\n', b"\0\0\0\n", b"[" * 100_000 + b"\n", b'{"a": ' + b"9" * 5000 + b"}\n",
])
def test_other_damage_is_named_by_its_line(path: Path, damage: bytes) -> None:
    lines = written(path).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    assert "line 3 is damaged" in refused(path)


@pytest.mark.parametrize("damage", [b"nonsense\n", b"\n", b'{"type": "note", "at": "x", \xff\n', b"whole, cut", b"flipped"])
def test_one_damaged_line_is_one_fault_and_its_hint_helps(path: Path, damage: bytes) -> None:
    lines_ = written(path, 5).read_bytes().splitlines(keepends=True)
    damaged = {b"whole, cut": lines_[2][:-9] + b"\n", b"flipped": lines_[2].replace(b"{", b"[", 1)}.get(damage, damage)
    path.write_bytes(b"".join([*lines_[:2], damaged, *lines_[3:]]))
    said = refused(path)
    assert "remove" not in said and said.endswith("; restore the file from a copy; lawf show still reads the other lines")
    found = [one for one in store.verify(path) if one.line != 1]  # whose hashes are made up here
    assert [one.line for one in found] == [3] == [one.line for one in store.salvage(path).troubles]
    assert str(found[0]).startswith("line 3: it is ") and [line for line, _ in store.salvage(path).events] == [2, 4, 5, 6]
    path.write_bytes(b"".join([*lines_[:2], *lines_[3:]]))
    assert "taken out" in str(store.verify(path)[-1]), "to remove a line is no way to mend the file"


def test_bytes_that_are_no_utf8_are_named_by_their_line(path: Path) -> None:
    path.write_bytes(written(path).read_bytes() + b'{"type": "note", "at": "\xff"}\n')
    assert "line 5 is not UTF-8 (byte 24)" in refused(path)


@pytest.mark.parametrize("content", [
    b"", b"\n", b"hello\n", b"{}\n", b"\xff\n", b"[1]\n", b'{"lawf_session": "1"}\n', b'{"lawf_session": true}\n', b'{"lawf_session": 0}\n',
])
def test_a_file_that_is_no_session_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "is not a lawf session" in refused(path)
    with pytest.raises(SessionError):
        open_to_append(path)
    assert path.read_bytes() == content and not lock_path(path).exists()


def test_a_damaged_header_says_what_is_missing(path: Path) -> None:
    path.write_bytes(b'{"lawf_session": 1, "id": "x"}\n')
    assert "line 1 is damaged" in refused(path)


def test_a_newer_schema_is_refused_by_its_number(path: Path) -> None:
    path.write_bytes(b'{"lawf_session": 17, "anything": "else"}\n')
    assert "schema 17" in refused(path) and "update lawf" in refused(path)


def test_missing_files_and_folders_give_one_line(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.jsonl")
    assert "not a regular file" in refused(tmp_path)
    assert "not a regular file" in refused(Path(os.devnull))
    with pytest.raises(SessionError, match=r"folder .* does not exist"):
        SessionFile.create(tmp_path / "none" / "x.jsonl", MODEL)
    assert list(tmp_path.iterdir()) == []


def test_a_line_above_50_mb_is_neither_read_nor_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 5000)
    with SessionFile.create(path, MODEL) as session:
        with pytest.raises(SessionError, match="above 50 MB"):
            session.append("note", text="x" * 5000)
        session.append("note", text="small")
    assert texts(path) == ["small"]
    path.write_bytes(path.read_bytes() + b"x" * 5001)
    assert "line 3 is longer than 50 MB" in refused(path)


@given(st.binary(max_size=80), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_load_or_are_refused_in_one_line(path: Path, content: bytes, with_header: bool) -> None:
    header = to_line({"lawf_session": 1, "id": "", "created": "", "lawf_version": "", "model": {}})
    path.write_bytes(header * with_header + content)
    try:
        load(path)
    except SessionError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("last", [False, True])
def test_a_line_that_is_too_long_costs_no_other(path: Path, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 5000)
    whole = written(path).read_bytes().splitlines(keepends=True)
    at = len(whole) if last else 2
    path.write_bytes(b"".join([*whole[:at], b"x" * 16001 + b"\n", *whole[at:]]))
    assert f"line {at + 1} is longer than 50 MB" in refused(path)
    found = store.salvage(path)
    assert [event["text"] for _, event in found.events] == [f"note {number} 豆包" for number in range(3)]
    assert (found.troubles[0].line, len(found.troubles)) == (at + 1, 1) and "longer than 50 MB" in found.troubles[0].text
    assert [one.line for one in store.verify(path) if "longer than 50 MB" in one.text] == [at + 1]
    path.write_bytes(b"x" * 16001 + b"\n" + b"".join(whole))
    with pytest.raises(SessionError, match="line 1 is longer"):
        store.salvage(path)


@pytest.mark.parametrize("prompts", [5, None, "12", [5], [[1, [2]]], [[1, {}]], [{"1": 2}]])
def test_a_training_of_what_is_no_prompt_is_a_finding(prompts: Any, tmp_path: Path) -> None:
    told = saved.events(tmp_path)[:-1]  # without an adapter that is gone
    at = next(number for number, event in enumerate(told) if event["type"] == "training")
    told[at]["prompts"] = prompts
    assert [one.line for one in store.verify(saved.write(tmp_path / "whole.jsonl", told))] == [at + 2]


def test_an_older_schema_is_migrated_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(path, notes=1).read_bytes() + b'{"type"'
    path.write_bytes(content)

    def step(name: str) -> store.Migration:
        return lambda header, events: (header, [{**event, "text": event["text"] + name} for event in events])

    monkeypatch.setattr(lines, "SCHEMA", 3)
    monkeypatch.setattr(lines, "MIGRATIONS", {1: step(" one"), 2: step(" two")})
    assert texts(path) == ["note 0 豆包 one two"] and load(path).header["lawf_session"] == 3
    assert path.read_bytes() == content  # reading changes nothing
    with open_to_append(path) as session:
        session.append("note", text="new")
    monkeypatch.setattr(lines, "MIGRATIONS", {})
    assert texts(path) == ["note 0 豆包 one two", "new"]


def test_every_older_schema_has_a_migration() -> None:
    assert sorted(lines.MIGRATIONS) == list(range(1, lines.SCHEMA))


def test_an_event_that_is_none_is_refused_before_anything_is_written(path: Path) -> None:
    with SessionFile.create(path, MODEL) as session:
        before = path.read_bytes()
        with pytest.raises(ValueError, match="surprise"):
            session.append("surprise")
        with pytest.raises(ValueError, match="type and at"):
            session.append("note", at="yesterday")
        with pytest.raises(TypeError):
            session.append("note", text=object())
        assert path.read_bytes() == before


def test_numbers_that_json_lacks_are_written_as_names(path: Path) -> None:
    with SessionFile.create(path, MODEL) as session:
        session.append("training", loss=float("nan"), steps=[{"drift": float("inf")}, -1.5])

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for line in path.read_text("ascii").splitlines():
        json.loads(line, parse_constant=refuse)
    event, = load(path).events
    assert (event["loss"], event["steps"]) == ("NaN", [{"drift": "Infinity"}, -1.5])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_full_disk_loses_nothing_and_the_session_goes_on(path: Path) -> None:
    import resource

    with SessionFile.create(path, MODEL) as session:
        session.append("note", text="before")
        whole = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 40, hard))
        try:
            with pytest.raises(SessionError, match="cannot write to") as caught:
                session.append("note", text="x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value) and path.read_bytes() == whole
        session.append("note", text="after")
    assert texts(path) == ["before", "after"]


def test_an_event_that_was_interrupted_is_cut_off_before_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SessionFile.create(path, MODEL) as session:
        real = os.write

        def interrupted(descriptor: int, data: Any) -> int:
            real(descriptor, bytes(data)[:10])
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.append("note", text="lost")
        monkeypatch.setattr(os, "write", real)
        assert load(path).dropped
        session.append("note", text="kept")
    assert texts(path) == ["kept"]


def test_a_header_that_cannot_be_written_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(SessionError, match="No space left on device"):
            SessionFile.create(path, MODEL)
    assert list(path.parent.iterdir()) == [], "no lock either"
    written(path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_gives_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SessionError, match="Permission denied"):
            SessionFile.create(tmp_path / "x.jsonl", MODEL)
    finally:
        tmp_path.chmod(0o700)


def test_a_file_that_may_not_be_opened_gives_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path)
    real = os.open

    def read_only(name: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_WRONLY:
            raise OSError(30, "Read-only file system")
        return real(name, flags, mode)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", read_only)
        with pytest.raises(SessionError, match=r"cannot open .*: Read-only file system") as caught:
            open_to_append(path)
    open_to_append(path).close()  # the lock was let go, even while
    assert caught.tb              # the failure's frames live on


def test_a_file_that_was_removed_or_closed_is_not_written_in_silence(path: Path) -> None:
    session = SessionFile.create(path, MODEL)
    path.unlink()
    with pytest.raises(SessionError, match="was removed"):
        session.append("note", text="x")
    session.close()
    session.close()
    with pytest.raises(SessionError, match="is closed"):
        session.append("note", text="x")


def test_threads_do_not_mix_their_lines(path: Path) -> None:
    with SessionFile.create(path, MODEL) as session:
        def five(name: str) -> None:
            for _ in range(5):
                session.append("note", text=name * 2000)

        threads = [threading.Thread(target=five, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(texts(path)) == sorted(name * 2000 for name in "abcd" for _ in range(5))


def test_adapter_and_lock_lie_beside_the_file_under_its_name() -> None:
    assert adapter_path(Path("a/x.jsonl")) == Path("a/x.adapter") and lock_path(Path("a/x.jsonl")) == Path("a/x.lock")
    assert adapter_path(Path("v1.2")) == Path("v1.2.adapter")  # only our own suffix goes, or v1.3 would share it


def test_the_hash_of_a_directory_is_that_of_its_names_and_contents(tmp_path: Path) -> None:
    def make(name: str, files: dict[str, bytes]) -> str:
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
        return directory_sha256(tmp_path / name)

    files = {"b/config": b"1", "a": b"2", "ü": b""}
    listing = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    assert make("one", files) == make("two", dict(reversed(files.items()))) == hashlib.sha256(listing.encode()).hexdigest()
    assert len({make("one", files), make("three", {**files, "a": b"3"}), make("four", {**files, "c": b""}), make("five", {"x": b"2"})}) == 4
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "none"):
        with pytest.raises(SessionError, match="found none"):
            directory_sha256(tmp_path / missing)


IDS = st.integers(0, 10**6)
ID_TUPLE = st.lists(IDS, max_size=3).map(tuple)
ALTERNATIVE = st.builds(records.Alternative, IDS, TEXT, NUMBER)
TOKEN = st.builds(records.Token, IDS, TEXT, NUMBER, IDS, NUMBER, st.lists(ALTERNATIVE, max_size=2).map(tuple), st.booleans())
COMPLETION = st.builds(records.Completion, ID_TUPLE, st.lists(TOKEN, max_size=3).map(tuple),
                       st.sampled_from(["eos", "length", "interrupted"]), st.builds(records.Timing, NUMBER, NUMBER, NUMBER))
CORRECTION = st.builds(records.Correction, st.sampled_from(["replace", "delete", "end", "go_on"]), IDS, TEXT, ID_TUPLE, ID_TUPLE)
ANCHOR = st.builds(records.Anchor, IDS, IDS, IDS, TEXT, TEXT, NUMBER, NUMBER)
CASE = st.builds(records.Case, TEXT, ID_TUPLE, ID_TUPLE, st.lists(ANCHOR, max_size=2).map(tuple))
NODE = st.builds(records.Node, IDS, st.none() | IDS, COMPLETION, st.none() | CORRECTION, fix_positions=st.frozensets(IDS, max_size=3))
STEP = st.builds(records.TrainStep, IDS, NUMBER, st.lists(NUMBER, max_size=2).map(tuple), st.none() | NUMBER, NUMBER, st.booleans())
RESULT = st.builds(records.TrainingResult, IDS, NUMBER, st.sampled_from(["converged", "plateau"]), NUMBER,
                   st.lists(NUMBER, max_size=2).map(tuple), NUMBER, ID_TUPLE)
CHECKS = st.lists(st.builds(records.Check, TEXT, TEXT, TEXT), max_size=2).map(tuple)
PROBES = st.builds(records.ProbeResult, IDS, NUMBER, NUMBER, NUMBER)
SCORECARD = st.builds(records.Scorecard, st.none() | NUMBER, CHECKS, CHECKS, st.none() | PROBES)
RERUN = st.builds(records.Rerun, TEXT, COMPLETION, TEXT, COMPLETION, st.booleans())
RECORD = st.one_of(TOKEN, COMPLETION, CORRECTION, ANCHOR, CASE, NODE, STEP, RESULT, SCORECARD, RERUN)


@given(RECORD)
@settings(deadline=None)
def test_every_record_survives_a_line_of_a_session(record: Any) -> None:
    line = to_line({"record": store.to_json(record)})
    assert line.count(b"\n") == 1
    assert store.from_json(type(record), json.loads(line)["record"]) == record


@given(TOKEN, COMPLETION, CORRECTION, ANCHOR)
@settings(deadline=None)
def test_the_named_helpers_are_inverse_to_each_other(
        token: records.Token, completion: records.Completion, correction: records.Correction, anchor: records.Anchor) -> None:
    assert store.token_from_json(store.token_to_json(token)) == token
    assert store.completion_from_json(store.completion_to_json(completion)) == completion
    assert store.correction_from_json(store.correction_to_json(correction)) == correction
    assert store.anchor_from_json(store.anchor_to_json(anchor)) == anchor


@example("\ud83d", "\ude00")
@given(SURROGATES_TOO, SURROGATES_TOO)
@settings(deadline=None)
def test_tokens_that_split_a_character_into_surrogates_load(left: str, right: str) -> None:
    tokens = tuple(records.Token(0, text, 1.0, 0, 0.0) for text in (left, right))
    back = store.completion_from_json(json.loads(to_line(store.completion_to_json(records.Completion((), tokens, "length")))))
    assert as_json_keeps_it(back.text) == as_json_keeps_it(left + right)


COMPLETED = records.Completion((1,), (records.Token(7, "豆", 0.5, 0, 0.1), records.Token(0, "<end>", 0.9, 0, 0.1, special=True)), "eos")


def test_ids_stand_beside_text() -> None:
    value = store.completion_to_json(COMPLETED)
    assert value["text"] == "豆" and [(one["id"], one["text"]) for one in value["tokens"]] == [(7, "豆"), (0, "<end>")]


def test_a_field_that_is_new_since_then_gets_its_default_and_one_that_is_gone_is_passed_over() -> None:
    value = store.completion_to_json(COMPLETED)
    del value["timing"]
    assert store.completion_from_json({**value, "colour": "red"}) == replace(COMPLETED, timing=records.Timing())


@pytest.mark.parametrize(("change", "part"), [
    ({"finish": "soon"}, "Completion.finish"), ({"prompt_ids": ["1"]}, r"Completion.prompt_ids\[0\]: expected int, found str"),
    ({"prompt_ids": [True]}, "found bool"), ({"tokens": [{"id": 7}]}, r"Completion.tokens\[0\]: a field is missing"),
    ({"text": "else"}, "text differs"), ({"tokens": None}, "Completion.tokens"),
])
def test_a_wrong_value_is_named_by_its_field(change: dict[str, Any], part: str) -> None:
    with pytest.raises(SessionError, match=part):
        store.completion_from_json({**store.completion_to_json(COMPLETED), **change})


def test_a_whole_number_will_do_for_a_float() -> None:
    back = store.from_json(records.Alternative, {"id": 1, "text": "x", "p": 1})
    assert type(back.p) is float


def test_a_number_that_json_lacks_comes_back() -> None:
    step = records.TrainStep(1, float("inf"), (0.5,), None, 1.0, False)
    assert store.from_json(records.TrainStep, store.to_json(step)) == step
    assert store.to_json(step)["loss"] == "Infinity"
