"""Fixtures: a byte tokenizer, seeded tiny models, and the embedded demo model, each loaded once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lawf_repl.config import Settings
from lawf_repl.demo.vocabulary import CHAT_TEMPLATE, byte_characters
from lawf_repl.engine import native
from lawf_repl.engine.base import Engine, load_engine
from lawf_repl.engine.tokenizer import HubTokenizer
from lawf_repl.measure.probes import ProbeSet
from lawf_repl.measure.prompts import demo_probes
from lawf_repl.session import Session, open_session
from lawf_repl.store import adapter_path

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: the threads of one would only wait for those of another
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Tests write tens of thousands of events, and no power cut is among them: what a killed process wrote is there without a sync too.

    That each event is synced before append returns is held in test_store.py, which puts its own fsync in place of this one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that take minutes go first, each of the two to another worker, which start at the beginning and in the middle."""
    longest, second = ([item for item in items if name in item.name] for name in ("every_planted_mistake", "killed_at_any_moment"))
    rest = [item for item in items if item not in longest + second]
    items[:] = [*longest, *rest[:len(rest) // 2], *second, *rest[len(rest) // 2:]]


def make_byte_tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A token for each byte and three marks; every character beyond ASCII is several tokens."""
    vocabulary = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    vocabulary |= {character: 3 + byte for byte, character in sorted(byte_characters().items())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template,
                                   additional_special_tokens=["<|im_start|>"], clean_up_tokenization_spaces=False)


def make_tiny_model(seed: int = 0) -> Qwen3ForCausalLM:
    """Four layers of width 32 over the byte vocabulary, random but always the same."""
    torch.manual_seed(seed)
    config = Qwen3Config(vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
                         head_dim=16, max_position_embeddings=256, eos_token_id=2, pad_token_id=0, bos_token_id=None, initializer_range=0.3)
    model = Qwen3ForCausalLM(config)
    model.eval()
    return model


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if lawf had been installed where there is no C compiler."""
    monkeypatch.setattr(native, "at_hand", lambda: False)


@pytest.fixture(scope="session")
def byte_tokenizer() -> HubTokenizer:
    return HubTokenizer(make_byte_tokenizer())


@pytest.fixture
def tiny_engine() -> Engine:
    return Engine(make_tiny_model(), make_byte_tokenizer(), "tiny")


@pytest.fixture(scope="session")
def demo_engine() -> Engine:
    return load_engine(Settings())


@pytest.fixture(scope="session")
def demo_probe_set(demo_engine: Engine) -> ProbeSet:
    return demo_probes(demo_engine)


@pytest.fixture(scope="session")
def fixed_session(demo_engine: Engine, demo_probe_set: ProbeSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved session in which Australia's capital was corrected and trained, its adapter beside it. Read it, or copy it first."""
    path = tmp_path_factory.mktemp("fixed") / "canberra.jsonl"
    session = open_session(demo_engine, Settings(variations=0, rounds=2), demo_probe_set, path)
    for _ in session.ask("What is the capital of Australia?"):
        pass
    for _ in session.want("The capital of Australia is Canberra."):
        pass
    session.accept()
    session.add_paraphrase("Please give me the capital of Australia.")
    session.add_neighbour("What is the capital of Spain?")
    for _ in session.train():
        pass
    assert adapter_path(path).is_dir(), "it was saved with the training"
    session.scorecard(session.rerun())
    assert session.file is not None
    session.file.close()
    session.reset_adapter()
    return path


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of exports, which a fresh process is, in this one: what it finds is the same, without the seconds of a start."""
    from lawf_repl.export import fresh, verify

    def start(job: Path, more: dict[str, str]) -> SimpleNamespace:
        given = json.loads(job.read_text(encoding="utf-8"))
        report = fresh.check_adapter(given) if given["kind"] == "adapter" else fresh.check_merged(given)
        return SimpleNamespace(returncode=0, stdout=json.dumps(report), stderr="")

    monkeypatch.setattr(verify, "start", start)


@pytest.fixture
def demo_session(demo_engine: Engine) -> Iterator[Session]:
    """A session on the demo model that trains without variations, which are most of the work; its adapter is taken out of the shared model again."""
    session = Session(demo_engine, Settings(variations=0))
    yield session
    session.reset_adapter()
