"""`lawf show`: the whole story is told, in plain text where it must be, of damaged files too, and without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Group

from lawf_repl.beats import Answered, Beat, Compared, Corrected, Kept, Listed, Lost, Trained
from lawf_repl.chronicle import read_chronicle
from lawf_repl.cli import main
from lawf_repl.digest import read_digest
from lawf_repl.store import token_to_json, verify
from lawf_repl.ui.chronicle import Teller, story_view
from lawf_repl.ui.theme import Theme
from tests import saved
from tests.test_house import loaded_by
from tests.test_render import TEXTS, rendered, unsafe

GOLDEN = Path(__file__).parent / "golden"
EXAMPLES = Path(__file__).parent.parent / "sessions"
Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Runs the command in a folder of its own; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["show", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def drawn(path: Path, width: int = 80, theme: Theme | None = None) -> str:
    theme = theme or Theme(colour=False)
    return rendered(Group(*story_view(read_chronicle(path), theme, width)), width, colour=theme.colour)


@pytest.mark.parametrize("width", [60, 100])
def test_golden(width: int, tmp_path: Path) -> None:
    found = "\n".join(line.rstrip() for line in drawn(saved.whole(tmp_path), width).splitlines()) + "\n"
    assert found == (GOLDEN / f"show-{width}.txt").read_text(encoding="utf-8")
    assert all(cell_len(line) <= width for line in found.splitlines())


def test_every_kind_of_beat_can_be_told() -> None:
    source = {kind.__name__ for kind in Beat.__subclasses__()}
    teller = Teller(Theme(plain=True), 80)
    assert {name for name in source if not hasattr(teller, name.lower())} == set()


def test_unsure_tokens_are_underlined_and_whitespace_is_seen(tmp_path: Path) -> None:
    told = saved.events(tmp_path)
    space = saved.token(77, "  ", 0.1)
    told[2] |= {"tokens": [*told[2]["tokens"][:-1], token_to_json(space), told[2]["tokens"][-1]], "text": saved.BEFORE.text + "  "}
    text = drawn(saved.write(tmp_path / "a.jsonl", told), 80, Theme())
    assert "·" in text and any("Sydney" in part and "4" in part.split("m")[0].split(";") for part in text.split("\x1b["))


def test_nothing_but_text_reaches_a_pipe(show: Show, tmp_path: Path) -> None:
    code, out, err = show(saved.whole(tmp_path))
    assert code == 0 and not err and "\x1b" not in out and "›" in out and "Sydney" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_name_is_looked_up_in_the_folder(show: Show, tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    saved.whole(folder)
    assert show("whole")[1] == show(folder / "whole.jsonl")[1]


@pytest.mark.parametrize(("name", "said"), [("nope", "no session nope"), ("../x", "no session at ../x"), ("sessions", "is a folder"),
                                            ("other.jsonl", "is not a lawf session")])
def test_what_is_no_session_is_one_clear_line(show: Show, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "sessions").mkdir()
    (tmp_path / "other.jsonl").write_text("{}\n")
    code, out, err = show(name)
    assert code == 2 and not out and said in err and err.count("\n") == 1 and err.startswith("lawf: ")


def test_json_has_the_whole_story(show: Show, tmp_path: Path) -> None:
    code, out, _ = show(saved.whole(tmp_path), "--json")
    found = json.loads(out)
    assert code == 0 and found["schema"] == "lawf.show/1" and found["fixed"] is True and found["summary"]["drift"] == 1.2e-6
    assert [beat["kind"] for beat in found["story"]] == [
        "asked", "answered", "corrected", "moved", "moved", "accepted", "listed", "listed", "listed", "noted", "trained", "kept", "compared",
        "measured", "exported", "kept"]
    tokens = found["story"][1]["node"]["completion"]["tokens"]
    assert tokens[3]["alternatives"][1] == {"id": 10, "text": " Canberra", "p": 0.33}


def test_json_of_half_a_character_can_be_written(tmp_path: Path) -> None:
    told = saved.events(tmp_path)
    told[1]["messages"][1]["content"] = "\ud800"
    path = saved.write(tmp_path / "a.jsonl", told)
    done = subprocess.run([sys.executable, "-m", "lawf_repl", "show", str(path), "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["story"][0]["messages"][1]["content"] == "\ud800"


def test_a_correction_knows_what_stood_there_and_what_came(tmp_path: Path) -> None:
    chronicle = read_chronicle(saved.whole(tmp_path))
    beat = next(beat for beat in chronicle.beats if isinstance(beat, Corrected))
    assert beat.before is not None and beat.after is not None
    assert (beat.before.completion, beat.after.completion, beat.after.fix_positions) == (saved.BEFORE, saved.AFTER, frozenset({3}))
    trained, kept = (next(one for one in chronicle.beats if isinstance(one, kind)) for kind in (Trained, Kept))
    assert isinstance(trained, Trained) and trained.anchors == (saved.ANCHOR,) and trained.result == saved.RESULT
    assert isinstance(kept, Kept) and kept.folder == str(tmp_path / "whole.adapter") and chronicle.adapter.folder is None  # type: ignore[union-attr]
    compared = next(beat for beat in chronicle.beats if isinstance(beat, Compared))
    assert compared.whole and (compared.rerun.before, compared.rerun.after) == (saved.BEFORE, saved.LEARNED)
    listed = next(beat for beat in chronicle.beats if isinstance(beat, Listed))
    assert listed.prompts == ("Capital?", "Which city?")


def test_without_tokens_words_are_compared(tmp_path: Path) -> None:
    told = saved.events(tmp_path)
    rerun = next(event for event in told if event["type"] == "rerun")
    del rerun["after_completion"]
    text = drawn(saved.write(tmp_path / "a.jsonl", told))
    assert "[-Sydney.-]" in text and "{+Canberra.+}" in text and "word by word" in text


@pytest.mark.parametrize("damage", [b"\xff\n", b"{\n", b'{"type": "what", "at": "x"}\n', b'{"type": "completion", "at": "x"}\n', b"[]\n"])
@pytest.mark.parametrize("number", range(2, 21))
def test_a_damaged_line_costs_no_other(tmp_path: Path, damage: bytes, number: int) -> None:
    whole = read_chronicle(saved.whole(tmp_path)).beats
    hurt = read_chronicle(saved.spoiled(tmp_path / "whole.jsonl", number, damage))
    assert [found.line for found in hurt.troubles][:1] == [number]
    assert any(isinstance(beat, Lost) and beat.line == number for beat in hurt.beats)
    own = {beat.line for beat in whole} - {number}
    # a beat that two lines make, a correction and its answer or several prompts of a kind, may come from the other one
    assert own - {beat.line for beat in hurt.beats} <= {5} if number in (6, 5) else own <= {beat.line for beat in hurt.beats}
    assert f"line {number} is lost" in drawn(tmp_path / "whole.jsonl", 200)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_cut_last_line_is_said(tmp_path: Path, cut: int) -> None:
    path = saved.whole(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    text = drawn(path, 200)
    assert "line 20: it was cut after" in text
    assert "PASS" in text


def test_a_flipped_byte_is_said_and_the_rest_is_told(tmp_path: Path) -> None:
    path = saved.whole(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"a paraphrase", "prompt": "Which', b'"a paraphrase", "prompt": "Witch', 1))
    text = drawn(path, 200)
    assert "not as lawf wrote it" in text and "Witch city?" in text


def test_the_digest_is_the_same_read_fast(tmp_path: Path) -> None:
    for path in [saved.whole(tmp_path), *sorted(EXAMPLES.glob("*.jsonl"))]:
        assert read_digest(path) == read_chronicle(path).digest
    assert read_digest(tmp_path / "whole.jsonl").troubles == ()


KEPT_OPEN = TemporaryDirectory()  # hypothesis wants no fixture made for each test
ODD = Path(KEPT_OPEN.name)
LEAVES = st.one_of(TEXTS, st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.just([]), st.just({}),
                   st.lists(st.integers(-2, 300), max_size=3))


def changed_somewhere(value: Any, draw: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value with one part of it replaced."""
    if isinstance(value, dict) and value and (depth == 0 or draw(st.integers(0, 4))):
        key = draw(st.sampled_from(sorted(set(value) - ({"type", "at"} if depth == 0 else set()))))
        return {**value, key: changed_somewhere(value[key], draw, depth + 1)}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], changed_somewhere(value[index], draw, depth + 1), *value[index + 1:]]
    return draw(TEXTS if isinstance(value, str) else LEAVES)


@st.composite
def odd_sessions(draw: Callable[[Any], Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and events of a whole session with a few parts of them replaced, and some events left out."""
    told = saved.events(ODD)
    for _ in range(draw(st.integers(1, 6))):
        index = draw(st.integers(0, len(told) - 1))
        told[index] = changed_somewhere(told[index], draw)
    told = [event for event in told if draw(st.integers(0, 9))]
    model = {**saved.HEADER["model"], "id": draw(TEXTS), "dtype": draw(TEXTS)}  # type: ignore[dict-item]
    return {**saved.HEADER, "created": draw(TEXTS), "model": model}, told




@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(odd_sessions(), st.sampled_from([30, 80]))
def test_no_session_sends_a_control_character_or_a_traceback(odd: tuple[dict[str, Any], list[dict[str, Any]]], width: int) -> None:
    header, told = odd
    path = saved.write(ODD / "odd.jsonl", told, header)
    text = drawn(path, width, Theme(colour=False))
    assert unsafe(text) == []
    assert read_digest(path) == read_chronicle(path).digest or read_chronicle(path).troubles
    verify(path)


def test_no_model_library_is_loaded() -> None:
    loaded = loaded_by(f"from lawf_repl.cli import main; assert main(['show', {str(EXAMPLES / 'fact.jsonl')!r}]) == 0")
    assert not {"torch", "transformers", "peft"} & set(loaded)
    assert loaded_by("import lawf_repl.chronicle, lawf_repl.digest") == []


def test_an_answer_beat_of_an_example_has_its_tokens() -> None:
    beats = read_chronicle(EXAMPLES / "fact.jsonl").beats
    first = next(beat for beat in beats if isinstance(beat, Answered))
    assert " Sydney" in [one.text for one in first.node.completion.tokens] and not any(isinstance(beat, Lost) for beat in beats)


def test_a_text_of_millions_of_characters_is_told_by_its_beginning(tmp_path: Path) -> None:
    told = saved.events(tmp_path)
    told[1]["messages"][1]["content"] = "x" * 3_000_000
    told[8]["prompt"] = "y" * 3_000_000
    text = drawn(saved.write(tmp_path / "whole.jsonl", told))
    assert text.count("x" * 70) > 100 and text.count("and 2980000 characters more") == 2 and len(text) < 60_000
