"""Ids and text: nothing that is shown or typed is ever off by a character, whatever kind of tokenizer it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lawf_repl.engine.base import DEMO_MODEL
from lawf_repl.engine.tokenizer import HubTokenizer
from lawf_repl.errors import FixError
from lawf_repl.records import Token
from lawf_repl.spans import TextStream, encode_behind, first_word, group_start, lead_of, position_of, token_texts
from tests.tokenizer_zoo import LOSSY, ZOO, load_real_qwen2

EXAMPLES = ["The capital is Canberra.", "我是豆包，你的助手。", "a\r\n\n\tb  c ", "👩‍👩‍👧 e\u0301té é", "<|im_end|> </s> <eos> <0x0A>",
            "</s>", "<unk>", "豆豆豆豆豆", "'s n't a .",
            "שלום abc", "x" * 40, "\x00\x1b[31m", "\ufffd", " ", "   ", "\n\n\n", "▁", " ▁a"]
PREFIXES = ("The capital of Australia is", "我是", "a", "\n\n", "[1, ", "豆豆豆豆", "<s")


@cache
def load(name: str) -> HubTokenizer:
    if name == "demo":
        return HubTokenizer(AutoTokenizer.from_pretrained(DEMO_MODEL))
    if name == "qwen2":
        real = load_real_qwen2()
        if real is None:
            pytest.skip("the real Qwen2 tokenizer is not here")
        return HubTokenizer(real)
    return HubTokenizer(ZOO[name]())


@pytest.fixture(params=[*sorted(set(ZOO) - LOSSY), "demo", "qwen2"])
def tokenizer(request: pytest.FixtureRequest) -> HubTokenizer:
    """One that can write every text."""
    return load(request.param)


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_typed_text_comes_back_exactly_behind_any_prefix(tokenizer: HubTokenizer, text: str) -> None:
    for prefix_text in PREFIXES:
        prefix = tokenizer.encode(prefix_text)
        ids = encode_behind(tokenizer, prefix, text)
        assert tokenizer.decode([*prefix, *ids]) == tokenizer.decode(prefix) + text
        assert not any(tokenizer.is_special(id_) for id_ in ids)  # a typed mark is text


@pytest.mark.parametrize("text", EXAMPLES)
def test_token_texts_join_to_the_decoded_text(tokenizer: HubTokenizer, text: str) -> None:
    context = tokenizer.encode("a")
    ids = encode_behind(tokenizer, context, text)
    assert "".join(shown.text for shown in token_texts(tokenizer, ids, context)) == text
    assert [shown.text for shown in token_texts(tokenizer, ids, context) if shown.partial] == [""] * sum(
        shown.partial for shown in token_texts(tokenizer, ids, context))


@pytest.mark.parametrize("name", sorted(ZOO))
@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_was_shown_stays_whatever_token_comes_next(name: str, data: st.DataObject) -> None:
    tokenizer = load(name)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer.hub) - 1), max_size=30))  # broken characters, special tokens and all
    stream = TextStream(tokenizer)
    shown = ""
    for count, id_ in enumerate(ids, 1):
        shown += "".join(one.text for one in stream.push(id_))
        assert tokenizer.decode(ids[:count]).startswith(shown)
    assert shown + "".join(one.text for one in stream.flush()) == tokenizer.decode(ids)


def test_a_broken_byte_leaves_the_whole_characters_before_it_alone() -> None:
    tokenizer = load("llama2")
    whole = tokenizer.encode("a豆豆豆豆豆")
    first = tokenizer.encode("豆")[-3]
    assert len(whole) == 16
    assert tokenizer.decode([*whole, first]) == "a豆豆豆豆豆\ufffd"  # the decoder itself gives sixteen broken ones
    assert tokenizer.decode([*whole, first, *tokenizer.encode("b")]) == "a豆豆豆豆豆\ufffd b"


@pytest.mark.parametrize("name", ["gemma", "llama2", "mistral", "unigram_bytes"])
def test_any_text_can_be_typed_behind_a_broken_byte(name: str) -> None:
    tokenizer = load(name)
    broken = tokenizer.hub.convert_tokens_to_ids("<0xE8>")
    for text in ("\uf8ff", "\uf8ff\uf8fe", "豆\uf8ff", "\ufffd\uf8ff", "a", " \n", "\u0301"):  # whatever stands in for what is broken
        prefix = [*tokenizer.encode("a"), broken]
        ids = encode_behind(tokenizer, prefix, text)
        assert tokenizer.decode([*prefix, *ids]) == tokenizer.decode(prefix) + text


def test_clean_up_touches_nothing_that_is_shown() -> None:
    for name in ("wordpiece", "cleanup"):
        tokenizer = load(name)
        ids = tokenizer.encode("do not ask , ask .")
        assert tokenizer.decode(ids) == "do not ask , ask ."


def token(text: str, partial: bool = False) -> Token:
    return Token(0, text, 1.0, 0, 0.0, partial=partial)


def as_tokens(tokenizer: HubTokenizer, ids: Sequence[int]) -> list[Token]:
    return [token(*shown) for shown in token_texts(tokenizer, ids)]


def test_half_characters_show_once_and_stay_selectable(byte_tokenizer: HubTokenizer) -> None:
    ids = byte_tokenizer.encode("是豆!")
    tokens = as_tokens(byte_tokenizer, ids)
    assert [one.text for one in tokens] == ["", "", "是", "", "", "豆", "!"]
    assert [group_start(tokens, i) for i in range(7)] == [0, 0, 0, 3, 3, 3, 6]
    assert [one.text for one in as_tokens(byte_tokenizer, ids[:4])] == ["", "", "是", "\ufffd"]
    broken = as_tokens(byte_tokenizer, [*ids[:4], ids[0], *ids[6:]])  # two first bytes, one after the other
    assert [(one.text, one.partial) for one in broken[3:]] == [("\ufffd", False), ("\ufffd", False), ("!", False)]


def test_position_of_finds_the_token_that_shows_a_character() -> None:
    tokens = [token("The"), token(" capital"), token("", True), token("", True), token("豆"), token(""), token(".")]
    assert position_of(tokens, 0) == (0, 0)
    assert position_of(tokens, 4) == (1, 1)
    assert position_of(tokens, 11) == (2, 0)  # the first of the tokens that make up the character
    assert position_of(tokens, 12) == (6, 0)  # a token that shows nothing is no part of what stands behind it
    assert position_of(tokens, 13) == (7, 0)


def test_a_text_that_no_ids_give_is_refused() -> None:
    class Deaf:
        def encode(self, text: str) -> list[int]:
            return [0] * len(text)

        def spellings(self, text: str) -> Iterator[list[int]]:
            yield self.encode(text)

        def decode(self, ids: Sequence[int]) -> str:
            return "?" * len(list(ids))

        def is_special(self, id_: int) -> bool:
            return False

    with pytest.raises(FixError, match="cannot write 'x' exactly"):
        encode_behind(Deaf(), [], "x")


def test_first_word_is_what_a_user_would_retype() -> None:
    assert first_word(" Canberra.") == " Canberra"
    assert first_word("豆包，") == "豆"
    assert first_word('": 12, ') == '":'
    assert first_word("\n- pear") == "\n-"
    assert first_word("  ") == "  "
    assert lead_of(" Sydney") == " "
    assert lead_of("\nx") == ""
