"""Every architecture in the README's table: generate, cut anywhere, go on, train, off again, save and reload, right to the bit or the last digits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from lawf_repl.config import Settings
from lawf_repl.engine import cache
from lawf_repl.engine.base import Engine
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.engine.greedy import greedy_answers, most_probable
from lawf_repl.engine.rows import write_rows
from lawf_repl.engine.trial import try_model
from lawf_repl.errors import ModelError, OutOfMemory
from lawf_repl.learn.adapter import Adapter, find_targets
from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.lower import Lower
from lawf_repl.records import Completion
from lawf_repl.session import Session
from lawf_repl.spans import group_start
from tests.architecture_zoo import ARCHITECTURES, MORE, REFUSED
from tests.conftest import make_byte_tokenizer

SERVED = ARCHITECTURES | MORE
SNAPSHOTS = {"qwen3_5", "qwen3_next", "mamba2", "falcon_h1", "mamba", "falcon_mamba", "jamba", "bamba", "granitemoehybrid", "lfm2"}
STEPWISE = {"mamba", "falcon_mamba", "jamba"}  # they restart their scan at every chunk
WITHOUT_CACHE = {"recurrent_gemma"}            # its state lies on its layers
ANSWER = 64
STEPS = 40                                     # in fewer the random gemma3 is on some machines no better than it began
EXACT = 1e-3                                   # logits; what is wrong is off by 1 and more
CHUNKED = {"qwen3_5": 1e-2, "qwen3_next": 1e-2}  # linear attention in chunks is that far from the same computed token by token


@pytest.fixture(scope="module", params=sorted(SERVED))
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(SERVED[request.param](), make_byte_tokenizer(), request.param)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    session = Session(engine, Settings(max_tokens=ANSWER, max_steps=STEPS))
    yield session
    session.reset_adapter()


def run(items: Iterator[Any]) -> list[Any]:
    return list(items)


@torch.no_grad()
def full_logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


@torch.no_grad()
def last_logits(engine: Engine, rows: list[list[int]], count: int) -> list[torch.Tensor]:
    """The last logits of each row, all read at once without a cache; what is behind the end of a row changes nothing in it."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    logits = engine.model(input_ids=padded, use_cache=False).logits
    return [logits[number, len(row) - count:len(row)] for number, row in enumerate(rows)]


def same_answer(found: Completion, expected: Completion) -> None:
    """The same ids from the same distributions; single steps differ in the last bit with the place of a tensor in memory."""
    assert found.ids == expected.ids and found.text == expected.text
    assert [token.p for token in found.tokens] == pytest.approx([token.p for token in expected.tokens], abs=1e-5)


def test_the_trial_finds_how_the_cache_can_be_used(engine: Engine) -> None:
    mode = "none" if engine.name in WITHOUT_CACHE else "snapshot" if engine.name in SNAPSHOTS else "cut"
    assert engine.cache_kind.mode == mode
    assert engine.cache_kind.chunks == (engine.name not in STEPWISE)
    assert engine.cache_kind.positions == (engine.name == "bamba")
    assert [note for note in engine.notes if "recurrent layers" in note or "no cache" in note] == ([] if mode == "cut" else engine.notes[-1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(SERVED))
def test_the_trial_finds_the_same_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model: torch.nn.Module = SERVED[name]()  # the annotation of transformers' own to() is off
    kind = try_model(model.to(dtype), range(5, 200, 6), name)
    mode = "none" if name in WITHOUT_CACHE else "snapshot" if name in SNAPSHOTS else "cut"
    assert (kind.mode, kind.chunks, kind.positions) == (mode, name not in STEPWISE, name == "bamba")


def test_generating_gives_what_full_forwards_give(engine: Engine) -> None:
    prompt = list(engine.prompt_ids([{"role": "user", "content": "What?"}]))
    tokens = run(Decoder(engine).generate(prompt, (), Sampling(ANSWER)))
    logits = full_logits(engine, [*prompt, *(token.id for token in tokens)])[len(prompt) - 1:-1]
    assert [token.id for token in tokens] == logits.argmax(-1).tolist()
    assert torch.allclose(torch.tensor([token.p for token in tokens]), logits.softmax(-1).max(-1).values, atol=EXACT)
    assert greedy_answers(engine.model, [prompt, prompt], engine.end_ids, ANSWER, kind=engine.cache_kind) == [[token.id for token in tokens]] * 2


@pytest.mark.parametrize("saved", [1, 2**20])  # parted as late as they can be, or at once
def test_answers_written_together_are_those_written_alone(engine: Engine, saved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lawf_repl.engine.rows.SAVED", saved)
    prompts = [list(engine.prompt_ids([{"role": "user", "content": text}])) for text in ("What?", "Is it?", "Why is the sea salt?", "What?")]
    limits = [9, 24, 4, 17]  # they end at different times, so that rows are let go of

    def follow(row: int, id_: int) -> list[int] | None:
        limits[row] -= 1
        return None if limits[row] <= 0 else [65, 66] if row == 1 and limits[row] == 20 else []  # one is told what follows

    together = write_rows(engine.model, prompts, most_probable, follow, engine.cache_kind)
    assert [len(text) - len(prompt) for text, prompt in zip(together, prompts, strict=True)] == [9, 26, 4, 17]
    for text, prompt in zip(together, prompts, strict=True):
        forced = [i for i in (4, 5) if len(text) - len(prompt) == 26]
        top = full_logits(engine, text[:-1]).topk(2)
        for place in range(len(prompt), len(text)):
            sure = float(top.values[place - 1, 0] - top.values[place - 1, 1]) > 10 * CHUNKED.get(engine.name, EXACT)
            assert place - len(prompt) in forced or not sure or text[place] == int(top.indices[place - 1, 0])


def test_after_a_cut_at_any_position_the_logits_are_those_of_a_full_forward(engine: Engine) -> None:
    decoder = Decoder(engine)
    prompt = list(engine.prompt_ids([{"role": "user", "content": "What?"}]))
    run(decoder.generate(prompt, (), Sampling(ANSWER)))
    assert decoder.last is not None
    ids = [*prompt, *decoder.last.ids]
    forwards = [*reversed(range(len(prompt), len(ids))), *range(len(prompt), len(ids), 7), len(ids) - 1, len(prompt)]
    rows = {cut: [*ids[:cut], 70 + cut % 50, 33, 34, 35] for cut in forwards}
    expected = dict(zip(rows, last_logits(engine, list(rows.values()), 4), strict=True))
    for cut in forwards:  # ever deeper, then back and forth, each time going on with something else
        logits = decoder.logits_at(rows[cut], 4)
        assert float((logits - expected[cut]).abs().max()) < CHUNKED.get(engine.name, EXACT), cut


def test_a_correction_goes_on_as_if_the_prefix_had_been_read_afresh(engine: Engine, session: Session) -> None:
    run(session.ask("What?"))
    assert session.node is not None
    first = session.node.completion
    expected = {"none": "recomputed", "snapshot": "snapshot", "cut": "cut"}[engine.cache_kind.mode]
    for position in (40, 13, 25, 0):
        position = group_start(first.tokens, position)
        run(session.replace(position, "Zoë"))
        completion = session.node.completion
        assert completion.ids[:position] == first.ids[:position]
        afresh = Decoder(engine)
        run(afresh.generate(completion.prompt_ids, completion.ids[position:position + 4], Sampling(ANSWER), known=first.tokens[:position]))
        assert afresh.last is not None and afresh.last.ids == completion.ids
        reuse = completion.timing.reuse
        assert reuse is not None and reuse.how == expected and (reuse.kept > 0) == (expected != "recomputed")
        assert reuse.kept + reuse.read == len(completion.prompt_ids) + position + 4
        session.undo()
        assert session.node.completion == first


def test_training_saving_and_reloading(engine: Engine, session: Session, tmp_path: Path) -> None:
    run(session.ask("What?"))
    assert session.node is not None
    base = session.node.completion
    probe = [*base.prompt_ids, *base.ids[:20]]
    before = full_logits(engine, probe)
    run(session.replace(5, "Yes"))
    run(session.end(9))
    session.accept()
    steps = run(session.train())
    assert 1 < len(steps) <= STEPS + 2 and all(step.loss == step.loss for step in steps)
    best = [max(values) for values in zip(*(step.anchor_p for step in steps[1:]), strict=True)]
    risen = sum(later > first for later, first in zip(best, steps[0].anchor_p, strict=True))
    assert risen >= max(2, len(best) - 1)  # in so few steps one may still give way to the others
    trained = full_logits(engine, probe)
    assert not torch.equal(trained, before)
    run(session.ask("What?"))
    adapted = session.node.completion
    session.switch_adapter(False)
    assert torch.equal(full_logits(engine, probe), before)
    run(session.ask("What?"))
    same_answer(session.node.completion, base)
    session.switch_adapter(True)
    session.save_adapter(str(tmp_path / "adapter"))
    session.reset_adapter()
    assert torch.equal(full_logits(engine, probe), before)
    again = Adapter.load(engine.model, tmp_path / "adapter")
    assert torch.equal(full_logits(engine, probe), trained)
    decoder = Decoder(engine)
    run(decoder.generate(adapted.prompt_ids, (), Sampling(ANSWER)))
    assert decoder.last is not None
    same_answer(decoder.last, adapted)
    again.remove()
    assert torch.equal(full_logits(engine, probe), before)


def test_the_lora_is_where_it_should_be_and_each_of_its_matrices_learns(engine: Engine) -> None:
    targets = find_targets(engine.model, "upper")
    adapter = Adapter.fresh(engine.model, Settings(), engine.name)
    try:
        names = {name.split(".lora_A")[0].removeprefix("base_model.model.") for name in adapter.snapshot() if "lora_A" in name}
        assert names and names <= set(targets)
        assert not any(part in name for name in names for part in ("lm_head", "embed", "vision", "router", "experts"))
        assert {int(next(part for part in name.split(".") if part.isdecimal())) for name in names} == {2, 3}
        batch = make_batch([(list(range(20, 40)), list(range(40, 60)))], engine.device)
        parameters = adapter.parameters()
        completion_logits(adapter.base, batch).logsumexp(-1).sum().backward()
        dead = [name for name, parameter in zip(adapter.snapshot(), parameters, strict=True)
                if "lora_B" in name and (parameter.grad is None or not bool(parameter.grad.abs().max() > 0))]
        assert not dead
        adapter.switch(False)
        adapter.switch(True)
    finally:
        adapter.remove()


def test_padding_on_the_right_changes_nothing(engine: Engine) -> None:
    long, short = (list(range(20, 40)), list(range(40, 70))), (list(range(50, 60)), list(range(60, 65)))
    alone = [completion_logits(engine.model, make_batch([pair], engine.device)).detach() for pair in (long, short)]
    together = completion_logits(engine.model, make_batch([long, short], engine.device)).detach()
    assert torch.allclose(together, torch.cat(alone), atol=1e-3)


@pytest.mark.parametrize("name, complaint", [("bert", "BertLMHeadModel cannot be served: what it predicts at a token changes with"),
                                             ("xlnet", "XLNetLMHeadModel cannot be served: what it predicts at a token changes"),
                                             ("reformer", "ReformerModelWithLMHead cannot be served: the same text twice gives")])
def test_what_cannot_be_served_is_refused_by_name_before_anything_is_generated(name: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        Engine(REFUSED[name](), make_byte_tokenizer(), name)


@pytest.mark.parametrize("name", ["openai-gpt", "rwkv", "xlstm"])
def test_a_model_without_a_cache_that_can_be_kept_is_served_slowly_and_says_so(name: str) -> None:
    engine = Engine(REFUSED[name](), make_byte_tokenizer(), name)
    assert engine.cache_kind.mode == "none" and "reads the whole text again" in engine.notes[-1]
    session = Session(engine, Settings(max_tokens=12))
    run(session.ask("What?"))
    run(session.replace(4, "ab"))
    answer = session.node.completion  # type: ignore[union-attr]
    with torch.no_grad():
        logits = engine.model(input_ids=torch.tensor([[*answer.prompt_ids, *answer.ids]])).logits[0]
    expected = logits[len(answer.prompt_ids) - 1:-1].argmax(-1).tolist()
    assert list(answer.ids[6:]) == expected[6:] and answer.timing.reuse.how == "recomputed"  # type: ignore[union-attr]


def test_a_model_that_no_lora_fits_is_refused_before_it_answers(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_engine.model.config, "num_hidden_layers", 7)
    with pytest.raises(ModelError, match="Qwen3ForCausalLM cannot be trained"):
        Session(tiny_engine, Settings())


@pytest.mark.parametrize("name", ["llama", "qwen3_next", "falcon_h1"])
def test_an_interrupt_while_going_back_leaves_nothing_half_done(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(SERVED[name](), make_byte_tokenizer(), name)
    decoder = Decoder(engine)
    prompt = list(range(20, 60))
    run(decoder.generate(prompt, (), Sampling(30)))
    calls = 0

    def third_time(*arguments: Any, of: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return of(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_copy", lambda state, of=cache._copy: third_time(state, of=of))
        patch.setattr(DynamicLayer, "crop", lambda layer, count, of=DynamicLayer.crop: third_time(layer, count, of=of))
        with pytest.raises(KeyboardInterrupt):
            decoder.logits_at([*prompt[:30], 70, 71], 2)
    behind = [*prompt[:30], 70, 71]
    assert torch.allclose(decoder.logits_at(behind, 2), full_logits(engine, behind)[-2:], atol=1e-2)


def test_snapshots_stay_within_their_memory_and_the_first_and_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(SERVED["mamba2"](), make_byte_tokenizer(), "mamba2")
    decoder = Decoder(engine)
    prompt = list(range(20, 40))
    run(decoder.generate(prompt, (), Sampling(2)))
    one = next(iter(decoder.cache._marks.values())).bytes
    monkeypatch.setattr(cache, "SNAPSHOT_BYTES", 4 * one)
    decoder.drop_cache()
    run(decoder.generate(prompt, (), Sampling(200)))
    assert decoder.last is not None
    lengths = sorted(decoder.cache._marks)
    assert len(lengths) <= 4 and lengths[0] == len(prompt) - 1 and decoder.cache._spacing > cache.SPACING
    assert lengths[-1] >= len(prompt) + 200 - decoder.cache._spacing
    for cut in (190, 100, 20):
        behind = [*prompt, *decoder.last.ids[:cut], 70]
        assert torch.allclose(decoder.logits_at(behind, 1), full_logits(engine, behind)[-1:], atol=1e-3)

    class Full(cache._States):
        def __init__(self, of: Any) -> None:
            raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(cache, "_States", Full)  # without room for a snapshot it is slow and right
    run(decoder.generate([*prompt, 70, 71], (), Sampling(20)))
    behind = [*prompt, 70, 71, *decoder.last.ids[:9], 70]
    assert torch.allclose(decoder.logits_at(behind, 1), full_logits(engine, behind)[-1:], atol=1e-3)


class Peeking(LlamaForCausalLM):
    """Looks ahead: within blocks of four, or by one token."""

    blocks = 4

    def forward(self, input_ids: torch.Tensor | None = None, **arguments: Any) -> Any:
        assert input_ids is not None
        out = super().forward(input_ids=input_ids, **arguments)
        count = input_ids.shape[1]
        for at in range(count):
            last = min(count, at + 2 if self.blocks == 1 else at - at % self.blocks + self.blocks) - 1
            out.logits[:, at] += self.lm_head(self.model.embed_tokens(input_ids[:, last]))
        return out


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_looks_ahead_within_blocks_or_by_one_token_is_refused(blocks: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model: Any = Peeking(SERVED["llama"]().config)  # type: ignore[arg-type]  # of a LlamaConfig all the same
    model.blocks = blocks
    with pytest.raises(ModelError, match="Peeking cannot be served: what it predicts at a token changes"):
        try_model(model.to(dtype).eval(), range(5, 200, 6), "peeking")


def test_running_out_of_memory_at_load_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SERVED["llama"]()

    def full(*arguments: Any, input_ids: Any = None, use_cache: bool = True) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(OutOfMemory, match="out of memory while trying the model"):
        try_model(model, range(5, 50), "tiny")


def test_forwards_from_the_first_adapted_layer_on_are_the_whole_ones(engine: Engine) -> None:
    adapter = Adapter.fresh(engine.model, Settings(), engine.name)
    try:
        torch.manual_seed(0)
        adapter.restore({name: 0.1 * torch.randn_like(value) for name, value in adapter.snapshot().items()})
        lower = Lower(adapter)
        batches = [make_batch(rows, engine.device) for rows in ([((1, 60, 70), (80, 90, 100))], [((1, 61, 71, 81), (91, 101)), ((1, 62), (72,))])]
        with torch.no_grad():
            for batch in batches * 2:
                whole = completion_logits(engine.model, batch)
                assert torch.allclose(lower.logits(batch), whole, atol=1e-5 * float(whole.std()))
        assert not any("forward" in module.__dict__ for module in engine.model.modules())
    finally:
        adapter.remove()
