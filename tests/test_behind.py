"""An adapter that acts on completions alone: the prompt is the base's, everything else is as if the whole text had been read at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.engine.reach import Reach, behind_marks, reach_of
from lawf_repl.errors import ExportError, ModelError, TrainingError
from lawf_repl.learn import behind, lower
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.behind import can_be_cut
from lawf_repl.learn.lower import Lower
from lawf_repl.session import Session
from tests.architecture_zoo import ARCHITECTURES, MORE
from tests.conftest import make_byte_tokenizer

SERVED = ARCHITECTURES | MORE
MARK = (3, 4)
ROWS = [((1, 6, 7, 11, 12, *MARK), (8, 9, 10)), ((1, 6, *MARK, 7, 8, 9, 13, 14, *MARK), (10, 6)), ((1, *MARK), (7, 8, 9))]


def trained(model: Any, layers: str = "upper", mark: Sequence[int] = MARK) -> Adapter:
    """An adapter that has learned something."""
    adapter = Adapter.fresh(model, Settings(layers=layers), "tiny", mark)
    torch.manual_seed(1)
    adapter.restore({name: 0.1 * torch.randn_like(value) for name, value in adapter.snapshot().items()})
    return adapter


def leaves_prompts_alone(session: Session) -> bool:
    """Of the adapter in place."""
    assert session.adapter is not None
    return session.adapter.reach is not None


@torch.no_grad()
def whole_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits (T, V) of a text read at once, masked before its mark."""
    reach = reach_of(model)
    with behind_marks(model, [reach.start(ids) if reach else 0], 0, len(ids)):
        logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_it_begins_at_the_last_mark_as_peft_has_it(ids: list[int], mark: list[int]) -> None:
    start = Reach(mark, []).start(ids)
    places = [place for place in range(len(ids)) if ids[place:place + len(mark)] == mark]
    assert start == (max(places) if places else len(ids))


@pytest.mark.parametrize("name", sorted(SERVED))
def test_before_the_mark_it_is_the_base_and_behind_it_the_adapter(name: str) -> None:
    adapter = trained(SERVED[name]())
    ids = [1, 6, 7, *MARK, 8, 9, 10]
    adapted = whole_logits(adapter.base, ids)
    with adapter.off():
        base = whole_logits(adapter.base, ids)
    assert torch.equal(adapted[:3], base[:3]) and not torch.allclose(adapted[3:], base[3:], atol=1e-3)
    no_mark = [1, 6, 7, 8, 9]
    with adapter.off():
        base = whole_logits(adapter.base, no_mark)
    assert torch.equal(whole_logits(adapter.base, no_mark), base)
    adapter.remove()
    assert reach_of(adapter.base) is None


@pytest.mark.parametrize("thrifty", [False, True])
@pytest.mark.parametrize("layers", ["upper", "all"])
@pytest.mark.parametrize("name", sorted(SERVED))
def test_states_and_gradients_are_those_of_whole_texts(name: str, layers: str, thrifty: bool) -> None:
    adapter = trained(SERVED[name](), layers)
    batch = make_batch(ROWS, adapter.base.device)
    found_by, parameters = Lower(adapter), adapter.parameters()
    found_by.again.every = thrifty
    expected = completion_logits(adapter.base, batch)
    toward = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * toward).sum(), parameters, allow_unused=True)
    for _ in range(2):  # the second time from what was kept
        found = found_by.logits(batch)
        assert torch.allclose(found, expected, atol=2e-5 * float(expected.detach().abs().max()))
        for own, other in zip(torch.autograd.grad((found * toward).sum(), parameters, allow_unused=True), gradients, strict=True):
            assert (own is None) == (other is None) or float((own if other is None else other).abs().max()) == 0
            assert own is None or other is None or torch.allclose(own, other, rtol=1e-3, atol=2e-4 * float(other.abs().max()))


def test_a_plain_decoder_runs_nothing_before_the_mark_and_one_that_cannot_be_cut_reads_whole_texts() -> None:
    for name, cut in {"qwen3": True, "llama": True, "mamba2": False, "qwen3_next": False}.items():
        adapter = trained(SERVED[name]())
        batch = make_batch(ROWS, adapter.base.device)
        found_by = Lower(adapter)
        assert adapter.reach is not None and can_be_cut(adapter.base, adapter.reach) == cut
        seen, kept = found_by.seen(batch)
        assert kept and (seen.past is not None) == cut
        if cut:
            assert seen.ids.shape == (3, 5) and found_by.seen(batch)[0] is seen, "two tokens of the mark and at most three of an answer"
            found_by.states(batch)
            assert seen.past is not None and seen.past.cache.layers[0].keys.shape[:2] == (1, 1), "of the lower layers the states are kept, or nothing"


def test_states_that_there_is_no_room_for_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = trained(SERVED["qwen3"]())
    batch = make_batch(ROWS, adapter.base.device)
    expected = Lower(adapter).logits(batch)
    monkeypatch.setattr(lower, "PAST_BYTES", 0)
    scarce = Lower(adapter)
    for _ in range(2):
        assert torch.allclose(scarce.logits(batch), expected, atol=1e-5)
    assert not scarce._behind and not scarce._states


def test_a_model_that_takes_earlier_states_otherwise_reads_whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = trained(SERVED["qwen3"]())
    assert adapter.reach is not None
    update = behind.FixedLayer.update
    monkeypatch.setattr(behind.FixedLayer, "update", lambda self, keys, values: update(self, keys, 2 * values))
    assert not can_be_cut(adapter.base, adapter.reach)
    batch = make_batch(ROWS, adapter.base.device)
    assert torch.allclose(Lower(adapter).logits(batch), completion_logits(adapter.base, batch), atol=1e-5)


@pytest.mark.parametrize("name", sorted(SERVED))
def test_generating_and_switching_give_what_whole_texts_give(name: str) -> None:
    engine = Engine(SERVED[name](), make_byte_tokenizer(), name)
    adapter = trained(engine.model, mark=engine.mark("completion"))
    try:
        decoder = Decoder(engine)
        prompt = engine.prompt_ids([{"role": "user", "content": "What?"}])
        for on in (True, False, True):
            adapter.switch(on)
            decoder.drop_cache(adapter.reach)
            for _ in decoder.generate(prompt, (), Sampling(20)):
                pass
            assert decoder.last is not None
            text = [*prompt, *decoder.last.ids]
            p = whole_logits(engine.model, text)[len(prompt) - 1:-1].softmax(-1)
            assert [token.p for token in decoder.last.tokens] == pytest.approx(p[range(len(p)), decoder.last.ids].tolist(), abs=2e-3)
        assert decoder.last is not None
        if engine.cache_kind.mode == "cut":
            assert adapter.reach is not None
            assert decoder.last.timing.reuse is not None and decoder.last.timing.reuse.kept == adapter.reach.start(prompt), "the prompt was read once"
        # a second turn: what was the first answer is part of the prompt now
        turn = [*text, *engine.prompt_ids([{"role": "user", "content": "And?"}])]
        logits = decoder.logits_at(turn)
        assert torch.allclose(logits[-1], whole_logits(engine.model, turn)[-1], atol=1e-2)
    finally:
        adapter.remove()


@pytest.mark.parametrize("name", ["qwen3", "qwen3_next", "mamba", "gemma3", "recurrent_gemma"])
def test_answers_written_together_are_those_written_alone(name: str) -> None:
    engine = Engine(SERVED[name](), make_byte_tokenizer(), name)
    adapter = trained(engine.model, mark=engine.mark("completion"))
    prompts = [engine.prompt_ids([{"role": "user", "content": text}]) for text in ("A longer question, is it?", "Hm", "What? No!")]
    together = greedy_answers(engine.model, prompts, engine.end_ids, 12, kind=engine.cache_kind)
    alone = [greedy_answers(engine.model, [prompt], engine.end_ids, 12, kind=engine.cache_kind)[0] for prompt in prompts]
    assert together == alone
    for prompt, answer in zip(prompts, together, strict=True):
        assert whole_logits(engine.model, [*prompt, *answer])[len(prompt) - 1:-1].argmax(-1).tolist() == answer
    adapter.remove()


def test_peft_takes_a_saved_one_for_its_own_activated_lora(tmp_path: Path) -> None:
    model = SERVED["qwen3"]()
    adapter = trained(model)
    text = [1, 6, 7, *MARK, 8, *MARK, 9, 10]
    expected = whole_logits(model, text)
    adapter.save(tmp_path / "adapter")
    adapter.remove()
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["alora_invocation_tokens"] == list(MARK)
    theirs = PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor([text]), use_cache=False).logits[0]
    assert torch.allclose(found, expected, atol=1e-5)
    theirs.unload()
    again = Adapter.load(model, tmp_path / "adapter")
    assert again.reach is not None and again.reach.mark == MARK and torch.equal(whole_logits(model, text), expected)
    again.remove()


@pytest.mark.parametrize("mark", ["7", [1, "2"], [True], {"a": 1}])
def test_a_mark_that_is_none_is_refused(mark: object, tmp_path: Path) -> None:
    model = SERVED["qwen3"]()
    adapter = trained(model)
    adapter.save(tmp_path)
    adapter.remove()
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alora_invocation_tokens": mark}))
    with pytest.raises(ModelError, match="alora_invocation_tokens to be a list of token ids"):
        Adapter.load(model, tmp_path)


def test_a_layer_that_sees_other_shapes_is_an_error_and_never_served() -> None:
    adapter = trained(SERVED["qwen3"]())
    assert adapter.reach is not None
    ids = torch.tensor([[1, 2, 3]])
    with adapter.reach.only(torch.ones(1, 2, dtype=torch.bool)):
        adapter.base(input_ids=ids)  # nothing to mask
    complaint = pytest.raises(RuntimeError, match="cannot place")
    with complaint, adapter.reach.only(torch.tensor([[False, True]])):
        adapter.base(input_ids=ids)


def test_a_session_trains_one_and_the_prompt_is_read_once(demo_engine: Engine, tmp_path: Path) -> None:
    session = Session(demo_engine, Settings(scope="completion", variations=8))
    try:
        list(session.ask("What is the capital of Australia?"))
        list(session.want("The capital of Australia is Canberra."))
        session.accept()
        list(session.train())
        (rerun,) = session.rerun()
        assert rerun.fixed and rerun.before_matches
        start = len(rerun.after.prompt_ids) - len(demo_engine.mark("completion"))
        assert rerun.after.timing.reuse is not None and rerun.after.timing.reuse.kept == start
        path = session.save_adapter(str(tmp_path / "adapter"))
        session.set_setting("scope", "text")
        list(session.train())
        assert not leaves_prompts_alone(session)
        session.undo()
        assert leaves_prompts_alone(session)
    finally:
        session.close()
    other = Session(demo_engine, Settings(adapter=path))
    try:
        assert "".join(token.text for token in other.ask("What is the capital of Australia?")).startswith("The capital of Australia is Canberra.")
    finally:
        other.close()


def test_without_a_template_it_is_refused_before_anything_changes(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(tiny_engine, Settings(max_tokens=8))
    list(session.ask("What?"))
    list(session.replace(0, "Y"))
    session.accept()
    session.set_setting("scope", "completion")
    monkeypatch.setattr(tiny_engine, "has_template", False)
    with pytest.raises(TrainingError, match=r"scope completion: .* has no chat template"):
        session.train()
    assert not session.has_adapter


def test_only_peft_can_hold_it(demo_engine: Engine, tmp_path: Path) -> None:
    from lawf_repl.export.run import FORMATS, Order, export
    from lawf_repl.export.source import Source

    adapter = trained(demo_engine.model, mark=demo_engine.mark("completion"))
    try:
        for format_ in FORMATS[1:]:
            with pytest.raises(ExportError, match="acts on the completion alone"):
                export(demo_engine, adapter, Source(tmp_path, None, {}), Order(tmp_path / "out", format_), Settings())
        assert not (tmp_path / "out").exists()
    finally:
        adapter.remove()
