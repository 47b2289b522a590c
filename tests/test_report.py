"""`lawf report`: one page that needs nothing else, in which text stays text whatever it tries, readable in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lawf_repl.beats import Trained
from lawf_repl.chronicle import read_chronicle
from lawf_repl.cli import main
from lawf_repl.records import TrainingResult, TrainStep
from lawf_repl.report.curves import charts, whole_ticks
from lawf_repl.report.markup import Html, joined, tag
from lawf_repl.report.page import page
from tests import saved
from tests.test_house import loaded_by
from tests.test_render import TEXTS, unsafe
from tests.test_show import ODD, odd_sessions

EXAMPLES = Path(__file__).parent.parent / "sessions"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
TAGS = {"html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "article", "section", "h1", "h2", "h3", "h4", "p", "div",
        "span", "b", "bdi", "a", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "del", "ins", "details", "summary",
        "figure", "figcaption", "svg", "line", "polyline", "circle", "text"}
ATTRIBUTES = {"charset", "http-equiv", "content", "name", "lang", "class", "id", "href", "dir", "role", "tabindex", "scope", "aria-describedby",
              "aria-hidden", "aria-label", "viewbox", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "points"}
EVIL = ('</style></title></textarea></pre><script>top.owned=document.title="owned"</script><img src=x onerror="top.owned=1"><svg onload=top.owned=1>'
        '" onfocus="top.owned=1" autofocus=" \' onmouseover=\'top.owned=1 javascript:top.owned=1 <a href="javascript:top.owned=1">x</a>'
        '<!-- ]]> <base href=//x>'
        '<meta http-equiv=refresh content="0;url=javascript:top.owned=1"><iframe srcdoc="<script>top.owned=1</script>"></iframe>&lt;b&gt;&#60;i&#62;'
        '\u202e\u2066\u200b\x00\x1b[31m\ud800')
FIXED_WORDS = {"type", "at", "kind", "finish", "stop_reason", "what", "how", "sha256", "lawf_session"}
Run = Callable[..., tuple[int, str, str]]


class Reader(HTMLParser):
    """What a page is made of; every element has to be closed where it was opened."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text: list[str] = []
        self.policy = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[name] += 1
        self.attributes |= {key for key, _ in attributes}
        given = {key: value or "" for key, value in attributes}
        self.links += [given["href"]] if "href" in given else []
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if name != "meta":
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("there are no comments")


def page_of(*paths: Path) -> str:
    return page([read_chronicle(path) for path in paths])


def poisoned(value: Any, text: str) -> Any:
    """A session's event with `text` in place of every text that the model, the user or a path gave."""
    if isinstance(value, list):
        return [poisoned(one, text) for one in value]
    if not isinstance(value, dict):
        return text if isinstance(value, str) else value
    named_by_others = set(value) <= {"rank", "torch"}  # recipes and versions: their names are shown too
    made = {text if named_by_others else key: one if key in FIXED_WORDS else poisoned(one, text) for key, one in value.items()}
    if "tokens" in made:
        for token in made["tokens"]:
            token["text"] = token["text"] if not token["special"] else "<|im_end|>"
        made["text"] = "".join(token["text"] for token in made["tokens"][:-1])
    return made


def attacked(folder: Path, text: str, name: str) -> Path:
    """The session in which everything happens, with `text` wherever a text can stand."""
    told = [poisoned(event, text) for event in saved.events(folder)]
    for event in told:
        if event["type"] == "accept":
            event["text"] = text * 5
        if "after_completion" in event:
            event["after"] = event["after_completion"]["text"]
    model = {**saved.HEADER["model"], "id": text, "revision": text, "dtype": text}  # type: ignore[dict-item]
    return saved.write(folder / f"{name}.jsonl", told, {**saved.HEADER, "model": model, "lawf_version": text})


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["report", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


# -- what stands in the page ---------------------------------------------------------------------------------------------


def test_the_whole_story_is_there(tmp_path: Path) -> None:
    source = page_of(saved.whole(tmp_path))
    found = " ".join("".join(Reader(source).text).split())
    for part in (saved.PROMPT, "Be short.", "Sydney", "Canberra", "1 anchor", "33.0%", "12 steps in 1.5 s", "✓ gives the accepted answer",
                 "1 of 2 paraphrases", "208", "1.2e-06 nats", "whole.adapter", "PASS", "no folder with this content", "owner/model",
                 "torch 2.13.0", "2026-11-24 12:22 UTC"):
        assert part in found


def test_each_token_has_its_alternatives_for_the_pointer_and_the_keyboard(tmp_path: Path) -> None:
    source = page_of(saved.whole(tmp_path))
    found = re.search(r'<span class="t unsure" tabindex="0" aria-describedby="(n\d+)">Sydney<span class="tip" id="(n\d+)" role="tooltip">(.*?)</span>'
                      '</div>', source)
    assert found is not None and found[1] == found[2]
    shown = re.sub(r"<[^>]*>", "|", found[3])
    assert "id 9" in shown and "rank 1" in shown and re.search(r"2\|+·Canberra\|+[█▏▎▍▌▋▊▉]+\|+33\.0%", shown)
    assert source.count('tabindex="0" aria-describedby') == source.count('class="tip"') == 24
    ids = re.findall(r' id="([^"]+)"', source)
    assert len(ids) == len(set(ids)) and set(re.findall(r'aria-describedby="([^"]+)"', source)) <= set(ids)


def test_what_changed_is_marked_by_more_than_colour(tmp_path: Path) -> None:
    source = re.sub(r'<span class="tip".*?</span></span></span>', "</span>", page_of(saved.whole(tmp_path)))
    before, after = (re.sub(r"<[^>]*>", "", found) for found in re.findall(r"<(?:del|ins)>.*?</(?:del|ins)>", source))
    assert (before[0], before[-1], after[0], after[-1]) == ("−", "−", "+", "+") and "Sydney" in before and "Canberra" in after


def test_the_policy_allows_the_style_and_nothing_else(tmp_path: Path) -> None:
    source = page_of(saved.whole(tmp_path))
    style = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert len(style) == 1 and Reader(source).policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert source.index("Content-Security-Policy") < source.index("<style>")
    assert "url(" not in style[0] and "@import" not in style[0]


def test_every_figure_of_the_scorecard_has_its_n(tmp_path: Path) -> None:
    card = re.search(r'<table class="card">.*?</table>', page_of(saved.whole(tmp_path)), re.DOTALL)
    assert card is not None
    cells = [re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row)[:3] for row in card[0].split("<tr>")[2:]]
    rows = [" ".join(html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row) for row in cells]
    assert rows == ["reliability ✓ 1 of 1 1", "generality ✗ 1 of 2 2", "locality ✓ 1 of 1 1", "drift 1.2e-06 nats 208", "flips ✓ 0.0% 208"]


def test_curves_have_axes_labels_and_words(tmp_path: Path) -> None:
    source = page_of(saved.whole(tmp_path))
    drawings = re.findall(r'<svg viewBox="0 0 270 180" role="img"><title>(.*?)</title>(.*?)</svg>', source)
    assert [title for title, _ in drawings] == [
        "objective in nats: 3 at step 1, 0.021 at step 12", "drift on a few probes in nats: 1e-06 at step 1, 1.2e-05 at step 12",
        "probability of the wanted token: 40.0% at step 1, 95.0% at step 12"]
    for _, drawn in drawings:
        assert ">step</text>" in drawn and drawn.count('class="grid"') >= 2 and 'class="round"' in drawn and "<polyline" in drawn
    assert "100%" in drawings[2][1] and "1e-6" in drawings[1][1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(), st.one_of(st.none(), st.floats()), st.floats()), min_size=1, max_size=5), st.integers(0, 9),
       st.integers(0, 10**18))
def test_any_course_can_be_drawn(figures: list[tuple[float, float | None, float]], anchors: int, first: int) -> None:
    steps = tuple(TrainStep(first + n, loss, (p,) * anchors, drift, n, False, n) for n, (loss, drift, p) in enumerate(figures))
    result = TrainingResult(len(steps), 1.0, "plateau", 0.1, (0.5,) * anchors, 1.0)
    drawn = charts(Trained(1, "", result, (), 1, {}, steps))
    Reader(drawn)
    numbers = [float(number) for value in re.findall(r' (?:points|[xy][12]?|c[xy])="([^"]*)"', drawn) for number in re.split("[ ,]", value)]
    assert all(-1 <= number <= 271 for number in numbers)


@given(st.integers(0, 10**18), st.integers(0, 10**18))
def test_ticks_are_few_and_inside(one: int, other: int) -> None:
    first, last = min(one, other), max(one, other)
    assert len(whole_ticks(first, last)) <= 6 and all(first <= tick <= last for tick in whole_ticks(first, last))


def test_the_commands_can_be_copied(tmp_path: Path) -> None:
    told = saved.events(tmp_path)[:-1]
    told[1]["messages"][1]["content"] = "It's $HOME; `rm`?"
    model = {**saved.HEADER["model"], "id": "owner/it's"}  # type: ignore[dict-item]
    source = page_of(saved.write(tmp_path / "whole.jsonl", told, {**saved.HEADER, "model": model}))
    blocks = [html.unescape(found) for found in re.findall(r"<pre><code>(.*?)</code></pre>", source, re.DOTALL)]
    lines = [shlex.split(line, comments=True) for line in blocks[0].splitlines()]
    assert lines[0] == ["lawf", "answer", "It's $HOME; `rm`?", "--model", "owner/it's", "--revision", "abc", "--adapter", "whole.adapter",
                        "--system", "Be short."]
    assert lines[1:] == [["lawf", "replay", "whole.jsonl"], ["lawf", "export", "whole.jsonl", "fix", "--format", "merged"]]
    compile(blocks[1], "python", "exec")
    assert '"owner/it\'s", revision="abc"' in blocks[1] and 'PeftModel.from_pretrained(base, "whole.adapter")' in blocks[1]
    assert str(tmp_path) not in source


def test_commands_of_the_demo_model_name_no_model() -> None:
    source = page_of(EXAMPLES / "fact.jsonl")
    assert "--model" not in source and "from_pretrained" not in source and "--adapter fact.adapter" in source


def test_several_sessions_have_a_table_of_contents(tmp_path: Path) -> None:
    paths = [saved.whole(tmp_path, name) for name in ("one", "two")]
    found = Reader(page_of(*paths))
    assert [link for link in found.links if link.startswith("#session-")] == ["#session-1", "#session-2"]
    assert (found.tags["article"], found.tags["h1"], found.tags["h2"], found.tags["nav"]) == (2, 1, 2, 1)
    alone = Reader(page_of(paths[0]))
    assert (alone.tags["h1"], alone.tags["nav"]) == (1, 0)


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    text = " ".join(Reader(page_of(saved.spoiled(saved.whole(tmp_path), 5, b"{\n"))).text)
    assert "This file is damaged" in text and "line 5: " in text and "Canberra" in text


# -- text stays text -----------------------------------------------------------------------------------------------------


@example('<script>"', '"><b>')
@given(TEXTS, TEXTS)
def test_a_string_is_never_markup(content: str, value: str) -> None:
    made = tag("p", content, joined(value, None), title=value)
    assert isinstance(made, Html) and made.count("<") == 2 and made.count(">") == 2 and made.count('"') == 2 and unsafe(made) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(odd_sessions())
def test_no_session_becomes_markup(odd: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    header, told = odd
    source = page_of(saved.write(ODD / "odd.jsonl", told, header))
    found = Reader(source)
    assert set(found.tags) <= TAGS and found.attributes <= ATTRIBUTES and unsafe(source) == [] and all(link.startswith("#") for link in found.links)
    source.encode()


def test_attacks_change_nothing_of_the_page(tmp_path: Path) -> None:
    evil, harmless = (Reader(page_of(attacked(tmp_path, text, "one"))) for text in (EVIL, "harmless"))
    assert evil.tags == harmless.tags and evil.attributes == harmless.attributes and "script" not in evil.tags
    assert not read_chronicle(tmp_path / "one.jsonl").troubles, "it has to be told whole, or little would be tried"
    assert "".join(evil.text).count("<script>") > 50


# -- the command ---------------------------------------------------------------------------------------------------------


def test_a_page_is_written_and_never_over_another(run: Run, tmp_path: Path) -> None:
    path, out = saved.whole(tmp_path), tmp_path / "report.html"
    assert run(path, "-o", out)[0] == 0 and out.read_text("utf-8") == page_of(path)
    out.write_text("mine")
    code, _, err = run(path, "-o", out)
    assert code == 2 and "--force" in err and err.count("\n") == 1 and out.read_text() == "mine"
    assert run(path, "-o", out, "--force")[0] == 0 and out.read_text("utf-8") == page_of(path)
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".tmp")] == []


@pytest.mark.parametrize(("out", "said"), [("whole.jsonl", "session file"), ("nowhere/report.html", "no such folder"), (".", "found a folder")])
def test_a_place_that_cannot_be_is_refused(run: Run, tmp_path: Path, out: str, said: str) -> None:
    path = saved.whole(tmp_path)
    content = path.read_bytes()
    code, _, err = run(path, "-o", out, "--force")
    assert code == 2 and said in err and path.read_bytes() == content


def test_one_bad_file_does_not_stop_the_rest(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    saved.whole(folder, "good")
    (folder / "bad.jsonl").write_text("{}\n")
    code, out, err = run(folder, "nowhere.jsonl", "-o", "r.html", "--json")
    found = json.loads(out)
    assert code == 2 and not err and found["schema"] == "lawf.report/1" and len(found["sessions"]) == 1
    assert [one["session"] for one in found["failed"]] == ["nowhere.jsonl", "bad.jsonl"]
    text = " ".join(Reader((tmp_path / "r.html").read_text("utf-8")).text)
    assert "Not in this report" in text and "is not a lawf session" in text and saved.PROMPT in text
    code, out, err = run(folder / "bad.jsonl", "-o", "s.html")
    assert code == 2 and not out and not (tmp_path / "s.html").exists()


def test_no_model_library_is_loaded(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    loaded = loaded_by(f"from lawf_repl.cli import main; assert main(['report', {str(EXAMPLES)!r}, '-o', {str(out)!r}]) == 0")
    assert not {"torch", "transformers", "peft"} & set(loaded) and out.stat().st_size < 600_000


# -- in a real browser ---------------------------------------------------------------------------------------------------

LOOK = (Path(__file__).parent / "report_look.js").read_text("utf-8")


def browse(tmp_path: Path, frames: dict[str, tuple[str, int, int]], *flags: str) -> dict[str, Any]:
    """What a browser says of pages, each in a frame of its size."""
    parts = [f'<iframe id="{name}" width="{width}" height="{height}" srcdoc="{html.escape(source)}"></iframe>'
             for name, (source, width, height) in frames.items()]
    (tmp_path / "frames.html").write_text(f"<!doctype html><meta charset=utf-8><pre></pre><script>{LOOK}</script>{''.join(parts)}", "utf-8")
    assert CHROMIUM is not None
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([CHROMIUM, "--headless", *quiet, "--window-size=1600,1200", "--virtual-time-budget=20000", *flags, "--dump-dom",
                           (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<pre>(\{.*?\})</pre>", done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-1000:]
    return dict(json.loads(html.unescape(found[1])))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(tmp_path: Path, scheme: str) -> None:
    evil, harmless = (page_of(attacked(tmp_path, text, "one")) for text in (EVIL, "harmless"))
    told, long = page_of(saved.whole(tmp_path)), page_of(attacked(tmp_path, "tokens as wide as many words", "two"))  # some at the right edge
    found = browse(tmp_path, {"evil": (evil, 390, 844), "harmless": (harmless, 390, 844), "phone": (told, 390, 844), "desk": (long, 1100, 800)},
                   f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}")
    assert found["owned"] is None, "a script ran"
    assert found["evil"]["tags"] == found["harmless"]["tags"] and found["evil"]["title"] == "one · lawf"
    for name in ("evil", "phone", "desk"):
        one = found[name]
        assert set(one["tags"]) <= TAGS and one["handlers"] == [] and all(link.startswith("#") for link in one["links"])
        assert one["styled"] == "none", "the policy has to let the style through"
        assert one["width"] <= one["inner"], "it scrolls sideways"
        assert one["tips"] == one["tokens"] == 24 and one["outside"] == [], "a tip is not shown on focus, or not whole"
        assert one["weak"] == [], "text that is hard to read"
    assert (sum(map(int, re.findall(r"\d+", found["desk"]["ground"])[:3])) > 600) == (scheme == "light")
