"""Training: it reaches the anchors, says why it stops, and leaves the base as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.errors import ModelError, TrainingError
from lawf_repl.learn import standing
from lawf_repl.learn import train as learn_train
from lawf_repl.learn.adapter import Adapter, find_targets
from lawf_repl.learn.conflicts import conflicts
from lawf_repl.learn.lower import Lower
from lawf_repl.learn.pool import Pool
from lawf_repl.learn.train import cut_back, train
from lawf_repl.measure.probes import base_answers, measure_drift
from lawf_repl.measure.scorecard import measure
from lawf_repl.records import Anchor, Case, TrainingResult, TrainStep
from tests.conftest import make_tiny_model

SETTINGS = Settings()
IDS = torch.tensor([[1, 60, 70, 80, 90, 100, 110]])


def case(engine: Engine, prompt: str, answer: str, position: int) -> Case:
    """A case whose accepted answer has one anchor, at a token of `answer`."""
    prompt_ids = engine.prompt_ids([{"role": "user", "content": prompt}])
    assert engine.end_id is not None
    ids = (*engine.tokenizer.encode(answer), engine.end_id)
    return Case(prompt, prompt_ids, ids, (Anchor(position, 0, ids[position], "", "x", 1.0, 0.0),))


def run(adapter: Adapter, cases: list[Case], settings: Settings = SETTINGS, **more: Any) -> tuple[list[TrainStep], TrainingResult]:
    steps = []
    generator = train(adapter, cases, more.pop("replay", ()), settings, **more)
    while True:
        try:
            steps.append(next(generator))
        except StopIteration as end:
            return steps, end.value


@pytest.fixture
def france(demo_engine: Engine) -> Case:
    ids = demo_engine.tokenizer.encode("The capital of France is")
    return case(demo_engine, "What is the capital of France?", "The capital of France is Berlin.", len(ids))


@pytest.fixture
def adapter(demo_engine: Engine) -> Any:
    made = Adapter.fresh(demo_engine.model, SETTINGS, "demo")
    yield made
    made.remove()


def test_it_converges_with_room_and_can_be_cut_back_to_just_what_the_anchor_needs(adapter: Adapter, france: Case) -> None:
    steps, result = run(adapter, [france])
    assert result.stop_reason == "converged" and steps[0].anchor_p[0] < 0.5 < steps[-1].anchor_p[0]
    assert not steps[0].fixed and steps[-1].fixed
    assert result.anchor_p[0] > 0.99  # what only just holds seldom reaches paraphrases
    (least,) = cut_back(adapter, [france], SETTINGS)
    assert 0.95 <= least < 0.97
    weights = adapter.snapshot()
    adapter.restore(weights, 0.98)  # any less and the target is missed
    assert adapter.base(input_ids=torch.tensor([[*france.prompt_ids, *france.completion_ids]])).logits[
        0, len(france.prompt_ids) + france.anchors[0].position - 1].softmax(-1)[france.anchors[0].chosen_id] < 0.95


def test_each_way_to_stop_has_its_name(adapter: Adapter, france: Case) -> None:
    start = adapter.snapshot()
    assert run(adapter, [france], replace(SETTINGS, max_steps=2))[1].stop_reason == "max_steps"
    adapter.restore(start)
    assert run(adapter, [france], replace(SETTINGS, max_seconds=1e-3))[1].stop_reason == "max_seconds"
    adapter.restore(start)
    steps, result = run(adapter, [france], stop=lambda: True)
    assert result.stop_reason == "interrupted" and len(steps) == 1


def test_an_anchor_that_cannot_be_reached_ends_on_a_plateau_and_is_named() -> None:
    model = make_tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[70] = model.get_output_embeddings().weight[71]  # always equal: neither can pass one half
    adapter = Adapter.fresh(model, SETTINGS, "tiny")
    anchors = (Anchor(0, 9, 70, "", "x", 1.0, 0.0), Anchor(1, 9, 80, "", "y", 1.0, 0.0))
    steps, result = run(adapter, [Case("x", (1, 60), (70, 80), anchors)])
    assert result.stop_reason == "plateau" and result.unreachable == (0,) and 0.4 < result.anchor_p[0] < 0.501
    assert len(steps) < SETTINGS.max_steps


def test_what_holds_is_kept_over_what_is_only_strong(adapter: Adapter, france: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, late = standing.read, False
    monkeypatch.setattr(learn_train, "read", lambda *given: replace(seen(*given), wrong=seen(*given).wrong + late))
    generator, steps, held = train(adapter, [france], (), replace(SETTINGS, max_steps=8)), [], -1.0
    while True:
        try:
            steps.append(next(generator))
        except StopIteration as end:
            result = end.value
            break
        if steps[-1].fixed and steps[-1].anchor_p[0] >= SETTINGS.target_p:
            held, late = steps[-1].anchor_p[0], True  # from now on nothing holds
    assert held > 0 and max(step.anchor_p[0] for step in steps) > held
    assert result.anchor_p[0] == pytest.approx(held, abs=1e-6)


def test_a_weak_preference_lands_near_its_goal_and_leaves_the_others_their_proportions(demo_engine: Engine, adapter: Adapter, france: Case) -> None:
    position = france.anchors[0].position
    ids = torch.tensor([[*france.prompt_ids, *france.completion_ids]])
    with torch.no_grad(), adapter.off():
        base = adapter.base(input_ids=ids).logits[0, len(france.prompt_ids) + position - 1].softmax(-1)
    chosen = france.anchors[0].chosen_id
    start = adapter.snapshot()
    for confidence in (0.3, 0.6, 0.9):
        adapter.restore(start)
        weak = replace(france, anchors=(replace(france.anchors[0], confidence=confidence, p_ref=float(base[chosen])),))
        _, result = run(adapter, [weak])
        goal = weak.anchors[0].goal
        assert result.stop_reason == "converged" and result.unreachable == ()
        assert result.anchor_p[0] == pytest.approx(goal, rel=0.05)
        with torch.no_grad():
            tuned = adapter.base(input_ids=ids).logits[0, len(france.prompt_ids) + position - 1].softmax(-1)
        others, before = tuned.clone(), base.clone()
        others[chosen] = before[chosen] = 0
        assert float((others / others.sum() - before / before.sum()).abs().sum()) / 2 < 0.12  # total variation


@pytest.mark.parametrize("target_p", [0.6, 0.99, 0.99995])
def test_the_target_probability_is_reached_and_cutting_back_leaves_not_much_more(adapter: Adapter, france: Case, target_p: float) -> None:
    settings = replace(SETTINGS, target_p=target_p)
    _, result = run(adapter, [france], settings)
    assert result.stop_reason == "converged" and result.anchor_p[0] >= target_p
    assert target_p <= cut_back(adapter, [france], settings)[0] < target_p + (1 - target_p) / 2


def test_a_second_training_of_a_loaded_adapter_starts_where_it_is(demo_engine: Engine, adapter: Adapter, france: Case) -> None:
    run(adapter, [france])
    adapter.from_file = True
    steps, result = run(adapter, [france])
    assert steps[0].anchor_p[0] > 0.9 and result.stop_reason == "converged"


def test_an_interrupted_training_keeps_its_best_weights(adapter: Adapter, france: Case) -> None:
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count >= 6

    steps, result = run(adapter, [france], stop=stop)
    assert result.anchor_p[0] == pytest.approx(max(step.anchor_p[0] for step in steps), abs=1e-4)


def test_adapter_off_is_the_base_bit_for_bit_and_removing_it_too(france: Case) -> None:
    model = make_tiny_model()
    with torch.no_grad():
        base = model(input_ids=IDS).logits
        adapter = Adapter.fresh(model, SETTINGS, "tiny")
        assert torch.equal(model(input_ids=IDS).logits, base)  # untrained it changes nothing
        adapter.restore({name: torch.randn_like(p) for name, p in adapter.snapshot().items()})
        assert not torch.equal(model(input_ids=IDS).logits, base)
        with adapter.off():
            assert torch.equal(model(input_ids=IDS).logits, base)
        adapter.remove()
        assert torch.equal(model(input_ids=IDS).logits, base)


def test_a_saved_adapter_loads_bit_equal_and_through_peft_itself(tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = Adapter.fresh(make_tiny_model(), SETTINGS, "tiny")
    adapter.restore({name: torch.randn_like(p) for name, p in adapter.snapshot().items()}, scale=0.3)
    adapter.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    with torch.no_grad():
        wanted = adapter.base(input_ids=IDS).logits
        assert torch.equal(Adapter.load(make_tiny_model(), tmp_path).base(input_ids=IDS).logits, wanted)
        assert torch.equal(PeftModel.from_pretrained(make_tiny_model(), str(tmp_path))(input_ids=IDS).logits, wanted)


def test_only_linear_layers_of_the_upper_half_are_touched() -> None:
    model = make_tiny_model()
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert sorted(find_targets(model, "upper")) == sorted(f"model.layers.{number}.{part}" for number in (2, 3) for part in parts)
    assert len(find_targets(model, "all")) == 28
    adapter = Adapter.fresh(model, SETTINGS, "tiny")
    touched = {name.split(".lora_")[0] for name in adapter.snapshot()}
    assert len(touched) == 14 and not any("lm_head" in name or "embed" in name or ".layers.1." in name for name in touched)


def test_a_folder_that_is_no_adapter_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no adapter at .*expected a folder with adapter_config\.json"):
        Adapter.load(make_tiny_model(), tmp_path)
    Adapter.fresh(make_tiny_model(), SETTINGS, "tiny").save(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x00" * 9)
    with pytest.raises(ModelError, match="does not fit this model") as caught:
        Adapter.load(make_tiny_model(), tmp_path)
    assert "\n" not in str(caught.value)


def rewritten(folder: Path, **changes: Any) -> Path:
    """A saved adapter with changes in its config, as another tool may write it."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_an_adapter_that_fits_only_in_part_is_refused_and_leaves_the_base(tmp_path: Path) -> None:
    Adapter.fresh(make_tiny_model(), SETTINGS, "tiny").save(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    model = make_tiny_model()
    base = model(input_ids=IDS).logits
    save_file({name.replace(".model.layers", ".model.language_model.layers"): value for name, value in weights.items()},
              tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="56 of its tensors are missing or have no place"):
        Adapter.load(model, tmp_path)
    assert torch.equal(model(input_ids=IDS).logits, base) and not any("lora" in name for name, _ in model.named_parameters())
    save_file({name: value[:1] for name, value in weights.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit this model"):
        Adapter.load(model, tmp_path)
    assert torch.equal(model(input_ids=IDS).logits, base)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"replaces whole parts of the model \(modules_to_save\)"):
        Adapter.load(model, rewritten(tmp_path, modules_to_save=["lm_head"]))
    Adapter.load(model, rewritten(tmp_path, modules_to_save=None)).remove()
    assert torch.equal(model(input_ids=IDS).logits, base)


def test_an_adapter_whose_targets_are_a_pattern_stays_loadable(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=r".*self_attn\.(q|v)_proj", init_lora_weights=False)
    other = get_peft_model(make_tiny_model(), config)
    other.save_pretrained(str(tmp_path / "theirs"))
    adapter = Adapter.load(make_tiny_model(), tmp_path / "theirs")
    adapter.save(tmp_path / "ours")
    again = Adapter.load(make_tiny_model(), tmp_path / "ours")
    assert torch.equal(again.base(input_ids=IDS).logits, adapter.base(input_ids=IDS).logits)
    assert torch.equal(again.base(input_ids=IDS).logits, other(input_ids=IDS).logits)


@pytest.mark.parametrize("how", ["fresh", "load"])
def test_an_interrupt_while_an_adapter_is_put_in_leaves_the_base(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Adapter.fresh(make_tiny_model(), SETTINGS, "tiny").save(tmp_path)
    model = make_tiny_model()
    names = [name for name, _ in model.named_modules()]

    def interrupted(self: Adapter, *arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "__init__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ = Adapter.fresh(model, SETTINGS, "tiny") if how == "fresh" else Adapter.load(model, tmp_path)
    assert [name for name, _ in model.named_modules()] == names
    Adapter.fresh(model, SETTINGS, "tiny").remove()  # and a later one finds its layers


def test_masked_logits_do_not_make_training_nan() -> None:
    model = make_tiny_model()
    model.lm_head.register_forward_hook(lambda module, inputs, out: out.index_fill(-1, torch.tensor([5]), -float("inf")))
    adapter = Adapter.fresh(model, SETTINGS, "tiny")
    steps, result = run(adapter, [Case("x", (1, 60), (70, 80), (Anchor(0, 9, 70, "", "x", 0.5, 0.0), Anchor(1, 9, 80, "", "y", 1.0, 0.0)))],
                        replace(SETTINGS, max_steps=5), replay=[((1, 61), (62, 63))], watch=[((1, 61), (62, 63))])
    assert all(step.loss == step.loss and step.drift == step.drift for step in steps) and steps[-1].loss < steps[0].loss and result.loss < 100


def test_contradicting_anchors_are_named_before_training(demo_engine: Engine, adapter: Adapter, france: Case) -> None:
    other = case(demo_engine, "What is the capital of France?", "The capital of France is Madrid.", france.anchors[0].position)
    assert len(list(conflicts([france, other]))) == 1
    with pytest.raises(TrainingError, match="different tokens in the same place"):
        run(adapter, [france, other])
    with pytest.raises(TrainingError, match="nothing to train"):
        run(adapter, [replace(france, anchors=())])


def test_a_conflict_is_found_across_prompts_of_different_length_and_with_what_is_kept() -> None:
    def plain(prompt: tuple[int, ...], completion: tuple[int, ...], *positions: int) -> Case:
        return Case(str(prompt), prompt, completion, tuple(Anchor(p, 9, completion[p], "nine", str(completion[p]), 1.0, 0.0) for p in positions))

    first = plain((1, 2), (3, 4, 5), 1)
    assert list(conflicts([first, plain((1, 2, 3), (6, 7), 0)])) == [("4", "6", "(1, 2, 3)")]   # two anchors behind 1 2 3
    assert list(conflicts([first, plain((1, 2, 3), (9, 7), 1)])) == [("4", "nine", "(1, 2, 3)")]  # an anchor and what the other keeps
    assert not list(conflicts([first, plain((1, 3), (3, 6), 1)]))           # other prompts: no context in common
    assert not list(conflicts([first, plain((1, 2, 3), (4, 5, 6), 2)]))     # one goes on where the other ends


def test_an_untrained_adapter_has_no_drift_and_a_wild_one_has(demo_engine: Engine, adapter: Adapter, demo_probe_set: Any) -> None:
    probes = demo_probe_set.probes[:24]
    still = measure_drift(demo_engine, adapter, probes)
    assert still.n == 24 and still.drift_nats == 0 and still.flips == 0
    adapter.restore({name: torch.randn_like(p) for name, p in adapter.snapshot().items()})
    wild = measure_drift(demo_engine, adapter, probes)
    assert wild.drift_nats > 0.1 and wild.flips > 0.5
    asked = iter([False, False, True])
    card = measure(demo_engine, adapter, (), (), (), probes * 4, 8, lambda: next(asked))
    assert card.probes is None and next(asked, None) is None, "stopped between two batches: not measured, rather than measured on a part"


def test_replay_holds_the_replayed_answers(demo_engine: Engine, adapter: Adapter, france: Case, demo_probe_set: Any) -> None:
    near = [tuple(demo_engine.prompt_ids([{"role": "user", "content": f"What is the capital of {place}?"}])) for place in ("Spain", "Nepal", "Chad")]
    replay = list(zip(near, base_answers(demo_engine, near), strict=True))
    free = replace(SETTINGS, pull=0.0)
    loose, _ = run(adapter, [france], free, watch=replay)
    spread = measure_drift(demo_engine, adapter, replay).drift_nats
    assert loose[-1].drift == pytest.approx(spread, abs=1e-3) and spread > 0.01  # without, the fix spreads
    adapter.remove()
    again = Adapter.fresh(demo_engine.model, SETTINGS, "demo")
    try:
        steps, result = run(again, [france], free, replay=replay)
        assert result.stop_reason == "converged" and all(step.drift is None for step in steps)
        moved = Pool(again, replay, Lower(again)).moved()
    finally:
        again.remove()
    assert max(moved) <= 2 * SETTINGS.hold


def test_what_is_corrected_is_not_held(adapter: Adapter, france: Case) -> None:
    wrong = (france.prompt_ids, [*france.completion_ids[:france.anchors[0].position], 7])
    assert run(adapter, [france], replay=[wrong])[1].stop_reason == "converged"


def test_a_held_answer_is_in_the_objective_from_the_start(demo_engine: Engine, france: Case) -> None:
    near = [tuple(demo_engine.prompt_ids([{"role": "user", "content": f"What is the capital of {place}?"}])) for place in ("Spain", "Nepal", "Chad")]
    pairs = list(zip(near, base_answers(demo_engine, near), strict=True))
    moved = []
    for hold in ((), pairs):
        made = Adapter.fresh(demo_engine.model, SETTINGS, "demo")
        try:
            run(made, [france], replace(SETTINGS, pull=0.0, rounds=1), hold=hold)
            moved.append(max(Pool(made, pairs, Lower(made)).moved()))
        finally:
            made.remove()
    assert moved[1] < 0.1 * moved[0]


def test_cases_and_held_answers_in_one_pass_are_the_same_objective(adapter: Adapter, france: Case, demo_engine: Engine) -> None:
    prompts = [demo_engine.prompt_ids([{"role": "user", "content": text}]) for text in ("What is the capital of Spain?", "Who are you?")]
    replay = list(zip(prompts, base_answers(demo_engine, prompts), strict=True))
    loop = learn_train.Loop(adapter, standing.prepare(adapter, [france], replay, (), SETTINGS), SETTINGS, 0.0)
    loop.hold(replay)
    loop.pull = 0.0  # beside it the answers would weigh nothing
    with torch.no_grad():
        for parameter in loop.trained:
            parameter.add_(0.02)
    assert loop.together is not None and len(loop.held) == 1
    total, gradients, reading = loop._evaluate()
    loop.together = None
    apart, slopes, seen = loop._evaluate()
    loop.held = []
    assert total > 1.01 * loop._evaluate()[0], "what is held counts"
    assert total == pytest.approx(apart, rel=1e-4) and reading.wrong == seen.wrong
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-6) for a, b in zip(gradients, slopes, strict=True))


def test_an_anchor_is_pulled_to_its_goal_by_odds_that_float32_still_tells_apart_and_no_further() -> None:
    logits = torch.tensor([[20.0, 3.2, 0.0], [20.0, 2.9, 0.0], [20.0, 0.0, 0.0]], requires_grad=True)  # p is 1 in float32 in all of them
    place = torch.arange(3)
    target = SimpleNamespace(anchors=place, chosen=torch.zeros(3, dtype=torch.long), hard=torch.ones(3, dtype=torch.bool),
                             ref_logprobs=torch.full((3, 3), -1.1), confidence=torch.ones(3))
    loop: Any = SimpleNamespace(prepared=SimpleNamespace(target=target), goal_odds=torch.full((3,), 17.0))
    lost = learn_train.Loop.anchor_losses(loop, logits.log_softmax(-1))
    lost.sum().backward()
    assert logits.grad is not None
    pulled = logits.grad[:, 0]
    assert float(pulled[0]) < -0.4 and float(pulled[2]) == 0, "as steep as ever at the goal, and nothing beyond"
    assert float(lost[0].detach()) > float(lost[1].detach()) >= float(lost[2].detach())


def test_without_its_pull_an_adapter_still_moves_outward_alone(adapter: Adapter, france: Case) -> None:
    loop = learn_train.Loop(adapter, standing.prepare(adapter, [france], (), (), SETTINGS), SETTINGS, 0.0)
    outward = {id(parameter) for parameter in loop.trained}
    assert loop._loosen() and not loop.pull
    layers = adapter.layers().values()
    matrices = [matrix.weight for layer in layers for part in (layer.lora_A, layer.lora_B) for matrix in part.values()]
    learning = {id(weight): weight.requires_grad for weight in matrices}
    assert {one for one, learns in learning.items() if learns} == outward and loop.prepared.lower._stack.works
    assert loop._loosen() and len(loop.trained) == len(learning) and not loop._loosen()
