"""Ids and text: nothing that is shown or typed is ever off by a character."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lawf_repl.engine.base import DEMO_MODEL, HubTokenizer
from lawf_repl.errors import FixError
from lawf_repl.spans import encode_behind, first_word, group_start, lead_of, position_of, text_behind, token_texts

QWEN = Path(__file__).parent.parent.parent / "shared" / "tokenizers" / "qwen2"
EXAMPLES = ["The capital is Canberra.", "我是豆包，你的助手。", "a\r\n\n\tb  c ", "👩‍👩‍👧 e\u0301té é", "<|im_end|>",
            "שלום abc", "x" * 40, "\x00\x1b[31m", "\ufffd"]


def load(name: str) -> HubTokenizer:
    from transformers import AutoTokenizer

    from tests.conftest import make_byte_tokenizer

    if name == "byte":
        return HubTokenizer(make_byte_tokenizer())
    folder = DEMO_MODEL if name == "demo" else QWEN
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    return HubTokenizer(AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module", params=["byte", "demo", "qwen2"])
def tokenizer(request: pytest.FixtureRequest) -> HubTokenizer:
    return load(request.param)


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_typed_text_comes_back_exactly_behind_any_prefix(tokenizer: HubTokenizer, text: str) -> None:
    for prefix_text in ("", "The capital of Australia is", "我是", "a", "\n\n", "[1, "):
        prefix = tokenizer.encode(prefix_text)
        ids = encode_behind(tokenizer, prefix, text)
        assert tokenizer.decode([*prefix, *ids]) == tokenizer.decode(prefix) + text


@pytest.mark.parametrize("text", EXAMPLES)
def test_token_texts_join_to_the_decoded_text(tokenizer: HubTokenizer, text: str) -> None:
    ids = encode_behind(tokenizer, [], text)
    assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_random_fixes_leave_the_prefix_and_show_what_was_typed(data: st.DataObject) -> None:
    tokenizer = RANDOM[data.draw(st.sampled_from(sorted(RANDOM)))]()
    answer = data.draw(st.text(min_size=1, max_size=20).filter(encodable))
    fix = data.draw(st.text(min_size=1, max_size=12).filter(encodable))
    ids = encode_behind(tokenizer, [], answer)
    texts = token_texts(tokenizer, ids)
    cut = group_start(texts, data.draw(st.integers(0, len(ids))))
    new = encode_behind(tokenizer, ids[:cut], fix)
    assert tokenizer.decode([*ids[:cut], *new]) == "".join(texts[:cut]) + fix


def encodable(text: str) -> bool:
    """Not a lone surrogate, and free of the mark that decoders put for broken bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\ufffd" not in text


_CACHE: dict[str, HubTokenizer] = {}
RANDOM = {name: (lambda name=name: _CACHE.setdefault(name, load(name))) for name in ("byte", "demo")}


def test_half_characters_show_once_and_stay_selectable(byte_tokenizer: HubTokenizer) -> None:
    ids = byte_tokenizer.encode("是豆!")
    texts = token_texts(byte_tokenizer, ids)
    assert texts == ["", "", "是", "", "", "豆", "!"]
    assert [group_start(texts, i) for i in range(7)] == [0, 0, 0, 3, 3, 3, 6]
    assert token_texts(byte_tokenizer, ids[:4]) == ["", "", "是", "\ufffd"]


def test_position_of_finds_the_token_that_shows_a_character() -> None:
    texts = ["The", " capital", "", "", "豆", "."]
    assert position_of(texts, 0) == (0, 0)
    assert position_of(texts, 4) == (1, 1)
    assert position_of(texts, 11) == (2, 0)  # the first of the tokens that make up the character
    assert position_of(texts, 12) == (5, 0)
    assert position_of(texts, 13) == (6, 0)


def test_a_text_that_no_ids_give_is_refused() -> None:
    class Deaf:
        def encode(self, text: str) -> list[int]:
            return [0] * len(text)

        encode_unnormalized = encode

        def decode(self, ids: Sequence[int]) -> str:
            return "?" * len(list(ids))

        def is_special(self, id_: int) -> bool:
            return False

    with pytest.raises(FixError, match="cannot write 'x' exactly"):
        encode_behind(Deaf(), [], "x")


def test_typed_marks_are_text(tokenizer: HubTokenizer) -> None:
    ids = encode_behind(tokenizer, tokenizer.encode("end "), "<|im_end|>")
    assert not any(tokenizer.is_special(id_) for id_ in ids)
    assert text_behind(tokenizer, tokenizer.encode("end "), ids) == "<|im_end|>"


def test_first_word_is_what_a_user_would_retype() -> None:
    assert first_word(" Canberra.") == " Canberra"
    assert first_word("豆包，") == "豆"
    assert first_word('": 12, ') == '":'
    assert first_word("\n- pear") == "\n-"
    assert first_word("  ") == "  "
    assert lead_of(" Sydney") == " "
    assert lead_of("\nx") == ""
