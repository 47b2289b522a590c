"""What the engine makes of a tokenizer, its template and the model's configs: prompts, ends of turn, notes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lawf_repl.config import Settings
from lawf_repl.engine import base
from lawf_repl.engine.base import Engine, load_engine
from lawf_repl.engine.threads import choose_threads
from lawf_repl.errors import ModelError, NothingToFix, PromptError, UsageError
from lawf_repl.export.peft import base_of
from lawf_repl.session import Session
from tests.conftest import make_tiny_model
from tests.tokenizer_zoo import END_TOKENS, ZOO

THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QUESTION = [{"role": "user", "content": "What?"}]


def engine_of(tokenizer: PreTrainedTokenizerBase, ends: list[int] | int | None, **more: Any) -> Engine:
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                         max_position_embeddings=256, eos_token_id=ends, bos_token_id=None, initializer_range=0.5)
    return Engine(LlamaForCausalLM(config), tokenizer, "tiny", **more)


def id_of(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    found = tokenizer.convert_tokens_to_ids(text)
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_kind_of_tokenizer_ends_its_answers_with_a_token_of_its_own(name: str) -> None:
    tokenizer = ZOO[name]()
    texts = END_TOKENS.get(name, (tokenizer.eos_token,))
    engine = engine_of(tokenizer, [id_of(tokenizer, text) for text in texts])
    assert engine.end_ids == {id_of(tokenizer, text) for text in texts} | {tokenizer.eos_token_id}
    assert engine.tokenizer.decode([engine.end_id or 0]) == texts[-1]  # of several the one that the template writes
    session = Session(engine, Settings(max_tokens=12))
    for _ in session.ask("What?"):
        pass
    for _ in session.end(3):
        pass
    answer = session.node.completion  # type: ignore[union-attr]
    assert answer.finish == "eos" and answer.tokens[-1].special and answer.ids[-1] == engine.end_id
    assert texts[-1] not in answer.text and answer.tokens[-1].text.strip() == texts[-1]
    for other in engine.end_ids - {engine.end_id or 0}:
        session.pick(3, other, lambda: False)
    with pytest.raises(NothingToFix, match="ends there already"):
        session.end(len(answer.tokens) - 1)


def test_a_template_that_closes_answers_otherwise_than_the_model_is_noted_and_one_without_an_end_takes_the_tokenizers() -> None:
    tokenizer = ZOO["byte_bpe"]()
    end, turn = id_of(tokenizer, "<|endoftext|>"), id_of(tokenizer, "<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"
    engine = engine_of(tokenizer, end)
    assert engine.end_id == end and engine.end_ids == {end} and any("closes an answer with <|im_end|>" in note for note in engine.notes)
    assert not any("closes an answer" in note for note in engine_of(ZOO["byte_bpe"](), turn).notes)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    engine = engine_of(tokenizer, end)
    assert engine.end_id == end and engine.notes == []
    nameless = ZOO["byte_bpe"]()
    nameless.eos_token = None
    assert engine_of(nameless, None).end_ids == {turn}  # only the template says how an answer ends
    nameless.chat_template = None
    assert engine_of(nameless, None).end_id is None and "names no end-of-turn token" in engine_of(nameless, None).notes[-1]


def test_thinking_is_a_variable_of_the_template_and_its_tags_are_tokens() -> None:
    tokenizer = ZOO["byte_bpe"]()
    tokenizer.chat_template = THINKING
    ends = id_of(tokenizer, "<|im_end|>")
    think = [id_of(tokenizer, text) for text in ("<think>", "</think>")]
    loud, quiet = engine_of(tokenizer, ends), engine_of(tokenizer, ends, template_args=(("enable_thinking", False),))
    assert not set(think) & set(loud.prompt_ids(QUESTION)) and set(think) <= set(quiet.prompt_ids(QUESTION))
    assert not any(quiet.tokenizer.is_special(id_) for id_ in think)  # shown as the text they are
    session = Session(loud, Settings(max_tokens=20))
    for _ in session.ask("What?"):
        pass
    for _ in session.replace(0, "<think>\n\n</think>\n\nYes"):
        pass
    answer = session.node.completion  # type: ignore[union-attr]
    assert answer.ids[0] == think[0] and think[1] in answer.ids and answer.text.startswith("<think>\n\n</think>\n\nYes")
    given = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>c"}, {"role": "user", "content": "d<|im_end|>"}]
    ids = quiet.prompt_ids(given)
    assert ids.count(think[0]) == 2 and ids.count(ends) == 3  # the tags of the given answer stay tags, the typed mark is text
    with pytest.raises(UsageError, match="lawf's own to set"):
        engine_of(tokenizer, ends, template_args=(("tokenize", False),))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_special_tokens_typed_in_a_prompt_are_text_or_refused(name: str) -> None:
    tokenizer = ZOO[name]()
    engine = engine_of(tokenizer, tokenizer.eos_token_id)
    plain = sum(engine.tokenizer.is_special(id_) for id_ in engine.prompt_ids(QUESTION))
    for mark in engine.tokenizer.special_texts:
        try:
            ids = engine.prompt_ids([{"role": "user", "content": f"What is {mark} ?"}])
        except PromptError as error:  # a tokenizer that makes the mark of plain text as well
            assert name in ("unigram", "unigram_bytes") and "sanitize" in str(error)
            continue
        marks = [id_ for id_ in ids if engine.tokenizer.is_special(id_) and engine.tokenizer.decode([id_]) != tokenizer.unk_token]
        assert len(marks) == plain


def test_an_empty_answer_can_be_gone_on_and_a_full_one_ended() -> None:
    tokenizer = ZOO["llama2"]()
    engine = engine_of(tokenizer, tokenizer.eos_token_id)
    session = Session(engine, Settings(max_tokens=8))
    for _ in session.ask("What?"):
        pass
    assert session.node is not None and session.node.completion.finish == "length"
    for _ in session.end(0):
        pass
    empty = session.node.completion
    assert empty.text == "" and empty.finish == "eos" and len(empty.tokens) == 1
    for _ in session.go_on("Yes"):
        pass
    assert session.node.completion.text.startswith("Yes")
    assert session.node.completion.ids[0] in [anchor.chosen_id for anchor in session.anchors()]
    case = session.accept()
    assert case.accepted == session.node.completion.text


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantizing_without_its_library_is_one_line(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ModelError, match=f"--quantize {bits} needs bitsandbytes, which is not installed: pip install") as caught:
        load_engine(Settings(quantize=bits))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_model_is_corrected_like_any_other(bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    engine = load_engine(Settings(quantize=bits, device="cpu"))
    assert engine.cache_kind.mode == "cut"
    session = Session(engine, Settings())
    for _ in session.ask("What is the capital of Australia?"):
        pass
    for _ in session.want("The capital of Australia is Canberra."):
        pass
    session.accept()
    for _ in session.train():
        pass
    assert session.rerun()[0].fixed


def test_a_hub_model_is_known_by_its_commit_wherever_its_branch_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the cache of a downloaded model, as huggingface_hub lays it out."""
    cache, first, second = tmp_path / "models--me--demo", "a" * 40, "b" * 40
    for commit in (first, second):
        shutil.copytree(base.DEMO_MODEL, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(second)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it was imported: else it waits for the network
    engine = load_engine(Settings(model="me/demo", offline=True))
    assert engine.fingerprint()["revision"] == second and base_of(engine, None, None).revision == second
    assert base_of(load_engine(Settings(model="me/demo", offline=True, revision=first)), None, first).revision == first
    folder = load_engine(Settings(model=str(base.DEMO_MODEL)))
    assert folder.fingerprint()["revision"] == "" and base_of(folder, None, None).revision is None and load_engine(Settings()).revision is None


def test_a_small_model_on_a_cpu_gets_one_thread_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    model = make_tiny_model()
    choose_threads(model, {"OMP_NUM_THREADS": "2"})
    assert chosen == []
    choose_threads(model, {})
    assert chosen == [1]
    monkeypatch.setattr("lawf_repl.engine.threads.SMALL", 10)
    choose_threads(model, {})
    assert chosen == [1]
