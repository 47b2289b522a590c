"""Files of prompts: text and JSON Lines give the same, and every mistake is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lawf_repl.conversations import read_prompts
from lawf_repl.errors import UsageError

LINE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30).map(str.strip).filter(bool)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(LINE.filter(lambda text: text[0] not in '{"\ufeff'), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n", "\n\n \n"]))
def test_plain_text_and_json_lines_give_the_same_prompts(tmp_path: Path, texts: list[str], newline: str) -> None:
    asked = [[{"role": "user", "content": text}] for text in texts]
    path = tmp_path / "prompts"
    for lines in (texts, [json.dumps(text) for text in texts], [json.dumps({"id": 3, "prompt": text}) for text in texts],
                  [json.dumps({"messages": messages}) for messages in asked]):
        path.write_bytes(newline.join(lines).encode("utf-8"))
        assert read_prompts(path) == asked
    path.write_text("\ufeff" + texts[0], encoding="utf-8")
    assert read_prompts(path, "Be brief.") == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": texts[0]}]]


def test_a_conversation_keeps_its_own_system_message(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "A"}, {"role": "user", "content": "B"}]
    (tmp_path / "p").write_text(json.dumps({"messages": messages}))
    assert read_prompts(tmp_path / "p", "Be brief.") == [messages]


@pytest.mark.parametrize(("content", "says"), [
    (b"", "has no prompts: expected one a line"), (b" \n\n", "has no prompts"), (b"\xff\xfe", "is not UTF-8 at byte 0"),
    (b'{"prompt": "a"}\nb', r"line 2 is not JSON \(Expecting value at column 1\): expected each line as text in quotes"),
    (b'"a"\n\n{"text": "b"}', "line 3: expected text"),
    (b'{"prompt": 3}', "line 1: expected text"), (b'{"prompt": " "}', "line 1: the prompt is empty"), (b'"\\ud800"', "half of a surrogate pair"),
    (b'{"messages": []}', "line 1: expected a JSON list"), (b'{"messages": [{"role": "assistant", "content": "a"}]}', "the last message"),
    (b'{"messages": [{"role": "user"}]}', "line 1: message 1 must be"),
    (b'{"a":' * 100_000, "line 1 is not JSON that can be read, it is nested too deeply"),
])
def test_mistakes_are_named_with_their_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{path.name}.*{says}") as error:
        read_prompts(path)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_file_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_prompts(path)
