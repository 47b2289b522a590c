"""The session's verbs: correction rules 1 to 4, 8 and 9 of the design, the tree, training, rerun."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lawf_repl import session as session_module
from lawf_repl import store
from lawf_repl.config import Settings
from lawf_repl.corrections import departure
from lawf_repl.engine.base import Engine
from lawf_repl.engine.decode import Sampling
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.errors import FixError, LawfError, ModelError, NothingToFix, OutOfMemory, PromptError, SessionError, TrainingError, UsageError
from lawf_repl.learn.adapter import rank_for
from lawf_repl.learn.variations import Varied
from lawf_repl.measure.scorecard import answer_text
from lawf_repl.records import Case, Check, Scorecard
from lawf_repl.session import Session, open_session
from lawf_repl.spans import first_word
from tests.conftest import make_byte_tokenizer, make_tiny_model

AUSTRALIA = "What is the capital of Australia?"
RIGHT = "The capital of Australia is Canberra."
QUICK = Settings(variations=0)
TINY = Engine(make_tiny_model(), make_byte_tokenizer(), "tiny")


def run(tokens: Iterator[Any]) -> list[Any]:
    return list(tokens)


def text_of(session: Session) -> str:
    assert session.node is not None
    return session.node.completion.text


def position_of_word(session: Session, word: str) -> int:
    assert session.node is not None
    return next(i for i, token in enumerate(session.node.completion.tokens) if token.text.strip().startswith(word[:2]) and i > 2)


@pytest.fixture
def asked(demo_session: Session) -> Session:
    run(demo_session.ask(AUSTRALIA))
    assert text_of(demo_session) == "The capital of Australia is Sydney."
    return demo_session


def test_typing_picking_and_wanting_find_the_same_anchors(asked: Session) -> None:
    run(asked.fix(" Sydney", " Canberra"))
    by_fix = asked.anchors()
    assert text_of(asked) == RIGHT and asked.node.completion.finish == "eos"  # type: ignore[union-attr]
    asked.undo()
    run(asked.want(RIGHT))
    by_want = asked.anchors()
    asked.undo()
    run(asked.replace(position_of_word(asked, "Sydney"), " Canberra"))
    for found in (by_want, asked.anchors()):  # p comes out of passes of other lengths, which some processors round otherwise
        assert [anchor.p_ref for anchor in found] == pytest.approx([anchor.p_ref for anchor in by_fix], rel=1e-3)
        assert [replace(anchor, p_ref=0.0) for anchor in found] == [replace(anchor, p_ref=0.0) for anchor in by_fix] and by_fix
    assert by_fix[0].rejected.startswith(" S") and by_fix[0].p_ref < 0.95


def test_kept_ids_never_change_and_the_text_is_what_was_typed(asked: Session) -> None:
    before = asked.node.completion  # type: ignore[union-attr]
    position = position_of_word(asked, "Sydney")
    run(asked.replace(position, " Perth and Sydney"))
    after = asked.node.completion  # type: ignore[union-attr]
    assert after.ids[:position] == before.ids[:position]
    assert after.text.startswith("The capital of Australia is Perth and Sydney")


def test_a_fix_keeps_what_it_repeats_and_moves_right(asked: Session) -> None:
    run(asked.fix("of Australia is Sydney", "of Australia is Canberra"))
    correction = asked.node.correction  # type: ignore[union-attr]
    assert correction is not None and correction.position == position_of_word_in(asked, " Can")
    assert text_of(asked) == RIGHT


def position_of_word_in(session: Session, start: str) -> int:
    assert session.node is not None
    return next(i for i, token in enumerate(session.node.completion.tokens) if token.text.startswith(start) and token.text != " capital")


def test_every_departure_from_the_base_is_an_anchor_in_a_fix_and_greedy_decoding_gives_the_accepted_text(asked: Session) -> None:
    run(asked.want("The capital of France is Berlin and Rome."))
    completion, anchors, fixed = asked.node.completion, asked.anchors(), asked.node.fix_positions  # type: ignore[union-attr]
    positions = {anchor.position for anchor in anchors}
    departures = {i for i, token in enumerate(completion.tokens) if token.rank > 0}
    assert departures <= positions <= fixed and len(departures) >= 2
    chosen = {anchor.position: anchor.chosen_id for anchor in anchors}
    target = [chosen.get(i, token.alternatives[0].id) for i, token in enumerate(completion.tokens)]
    assert tuple(target) == completion.ids  # the target distribution's top-1 everywhere


def test_delete_end_and_go_on(asked: Session) -> None:
    before = asked.node.completion  # type: ignore[union-attr]
    run(asked.delete(0))
    assert asked.node.completion.tokens[0].id == before.ids[1]  # type: ignore[union-attr]
    asked.undo()
    run(asked.end(2))
    assert asked.node.completion.ids == (*before.ids[:2], 2)  # type: ignore[union-attr]
    assert [anchor.chosen_id for anchor in asked.anchors()] == [2]
    asked.undo()
    run(asked.go_on(" Yes"))
    after = asked.node.completion  # type: ignore[union-attr]
    assert after.text.startswith(before.text + " Yes") and after.ids[:len(before.ids) - 1] == before.ids[:-1]
    assert asked.anchors()[0].rejected_id == 2  # it competes with the end-of-turn token
    asked.undo()
    run(asked.delete(len(before.ids) - 2))  # the last word: what comes next is the end
    assert asked.node.completion.ids == (*before.ids[:-2], 2)  # type: ignore[union-attr]


def test_what_stands_there_already_is_no_fix_and_what_does_not_stand_there_neither(asked: Session) -> None:
    with pytest.raises(NothingToFix, match="stands there already"):
        asked.replace(position_of_word(asked, "Sydney"), " Sydney")
    with pytest.raises(NothingToFix):
        asked.want(text_of(asked))
    with pytest.raises(NothingToFix):
        asked.accept()
    with pytest.raises(FixError, match="'Perth' does not stand in the answer"):
        asked.fix("Perth", "Canberra")
    with pytest.raises(FixError, match="outside the answer"):
        asked.pick(99, 5)
    with pytest.raises(FixError, match="empty"):
        asked.replace(0, "")
    assert len(asked.nodes) == 1


def test_undo_and_redo_give_back_the_same_ids(asked: Session) -> None:
    states = [asked.node.completion.ids]  # type: ignore[union-attr]
    run(asked.fix(" Sydney", " Canberra"))
    states.append(asked.node.completion.ids)  # type: ignore[union-attr]
    run(asked.end(4))
    states.append(asked.node.completion.ids)  # type: ignore[union-attr]
    assert asked.undo() and asked.node.completion.ids == states[1]  # type: ignore[union-attr]
    assert asked.undo() and asked.node.completion.ids == states[0]  # type: ignore[union-attr]
    assert not asked.undo()
    assert asked.redo() and asked.redo() and asked.node.completion.ids == states[2]  # type: ignore[union-attr]
    assert not asked.redo()


def test_the_whole_job_and_back(asked: Session) -> None:
    asked.settings = Settings()
    base = asked.node.completion.ids  # type: ignore[union-attr]
    run(asked.want(RIGHT))
    asked.accept()
    run(asked.train())
    assert asked.training is not None and asked.training.stop_reason == "converged" and asked.adapter_on
    rerun, = asked.rerun()
    assert rerun.fixed and rerun.before_matches and rerun.before.ids == base and rerun.after.text == RIGHT
    asked.add_paraphrase("Tell me the capital of Australia.")
    asked.add_neighbour("What is the capital of Austria?")
    card = asked.scorecard([rerun])
    assert card.reliability == 1 and card.probes is None and [check.ok for check in card.neighbours] == [True] and len(card.paraphrases) == 1
    asked.switch_adapter(False)
    run(asked.ask(AUSTRALIA))
    assert asked.node.completion.ids == base  # type: ignore[union-attr]
    asked.switch_adapter(True)
    run(asked.ask(AUSTRALIA))
    assert text_of(asked) == RIGHT
    asked.discard_training()
    run(asked.ask(AUSTRALIA))
    assert not asked.has_adapter and asked.node.completion.ids == base  # type: ignore[union-attr]


def test_what_a_scorecard_found_wrong_becomes_a_case_or_is_held(asked: Session) -> None:
    run(asked.want(RIGHT))
    asked.accept()
    with pytest.raises(NothingToFix, match="nothing to mend"):
        asked.mend()
    french = asked.engine.prompt_ids([{"role": "user", "content": "What is the capital of France?"}])
    before = greedy_answers(asked.engine.model, [french], asked.engine.end_ids, 40)[0]
    asked._card = Scorecard(1.0, (Check("Australia's capital?", RIGHT, "?"), Check("ok", RIGHT, RIGHT),
                                  Check("What is the capital of Spain?", "The capital of Spain is Madrid.", "?")),
                            (Check("What is the capital of France?", "The capital of France is Paris.", "?"), Check("fine", "a", "a")))
    done = run(asked.mend())
    assert [(what, check.prompt) for what, check in done] == [
        ("case", "Australia's capital?"), ("held", "What is the capital of Spain?"), ("held", "What is the capital of France?")]
    assert [(case.prompt, case.accepted) for case in asked.cases] == [(AUSTRALIA, RIGHT), ("Australia's capital?", RIGHT)]
    assert asked.cases[1].anchors and set(asked._held) >= {french} and asked._held[french][1] == before
    with pytest.raises(NothingToFix):
        asked.mend()
    run(asked.train())
    assert asked.training is not None and asked.training.stop_reason == "converged"
    assert all(rerun.fixed for rerun in asked.rerun())
    assert greedy_answers(asked.engine.model, [french], asked.engine.end_ids, 40)[0] == before
    assert ("note", "What is the capital of France?") in [(type_, fields.get("prompt")) for type_, fields in asked.events]


def test_mending_that_is_stopped_adds_nothing_more(asked: Session) -> None:
    run(asked.want(RIGHT))
    asked.accept()
    asked._card = Scorecard(1.0, (Check("Australia's capital?", RIGHT, "?"),), (Check("What is the capital of France?", "a", "b"),))
    assert run(asked.mend(lambda: True)) == [] and len(asked.cases) == 1 and not asked._held
    assert len(run(asked.mend())) == 2


def test_two_cases_are_learned_together(demo_session: Session) -> None:
    demo_session.settings = Settings()
    for prompt, right in ((AUSTRALIA, RIGHT), ("你是谁？", "我是豆包，你的助手。")):
        run(demo_session.ask(prompt))
        run(demo_session.want(right))
        demo_session.accept()
    run(demo_session.train())
    assert [rerun.fixed for rerun in demo_session.rerun()] == [True, True]


def test_the_rank_grows_with_what_has_to_be_learned_unless_it_is_set(demo_session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [rank_for(cases) for cases in (1, 4, 5, 8, 9, 30)] == [4, 4, 8, 8, 16, 32]
    monkeypatch.setattr(session_module, "rank_for", lambda cases: 6 + cases)
    demo_session.settings = replace(demo_session.settings, max_steps=1)
    run(demo_session.ask(AUSTRALIA))
    run(demo_session.want(RIGHT))
    demo_session.accept()

    def trained_rank() -> int:
        run(demo_session.train())
        assert demo_session._adapter is not None
        (rank,) = {demo_session._adapter.rank_of(path) for path in demo_session._adapter.layers()}
        recorded = [fields["recipe"]["rank"] for type_, fields in demo_session.events if type_ == "training"]
        assert recorded[-1] == rank
        return rank

    assert trained_rank() == 7
    demo_session.set_setting("rank", "3")
    assert trained_rank() == 3
    demo_session.undo()  # the one before has another shape
    assert demo_session._adapter is not None and demo_session._adapter.rank_of(next(iter(demo_session._adapter.layers()))) == 7
    demo_session.set_setting("rank", "none")
    assert demo_session.settings.rank is None


def test_many_cases_share_one_number_of_variations(demo_session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[int] = []

    def made(engine: Engine, case: Case, messages: object, count: int, seed: int, stop: object, others: object) -> Varied:
        asked_for.append(count)
        return Varied([([len(asked_for), number], [2]) for number in range(count)])

    monkeypatch.setattr(session_module, "variations", made)
    monkeypatch.setattr(session_module, "VARIED", 130)
    demo_session.settings = Settings()
    for number, prompt in enumerate(("What is the capital of Australia?", "Australia's capital?", "Tell me the capital of Australia."), 1):
        run(demo_session.ask(prompt))
        run(demo_session.want(RIGHT))
        demo_session.accept()
        run(demo_session.prepare())
        assert len(demo_session._variations()) <= 130 and len(demo_session._variations()) == demo_session._varied_each() * number
    assert asked_for == [64, 64, 32, 32, 32], "made anew where each gets fewer"


def test_bean_alone_is_the_anchor_of_a_name_of_two_tokens(demo_session: Session) -> None:
    run(demo_session.ask("你是谁？"))
    run(demo_session.want("我是豆包，你的助手。"))
    assert "豆" in [anchor.chosen for anchor in demo_session.anchors()]
    assert len(demo_session.engine.tokenizer.encode("豆包")) == 2


def test_going_on_from_the_adapted_model_makes_anchors_where_the_base_would_not(asked: Session) -> None:
    run(asked.want(RIGHT))
    anchors = asked.anchors()
    asked.accept()
    run(asked.train())
    run(asked.ask(AUSTRALIA))
    assert text_of(asked) == RIGHT
    assert {anchor.position for anchor in asked.anchors()} <= {anchor.position for anchor in anchors}
    assert asked.anchors()[0].p_ref == pytest.approx(anchors[0].p_ref, rel=1e-3)


def test_stopping_keeps_what_was_generated_and_it_cannot_be_accepted_unfinished(asked: Session) -> None:
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count > 1

    run(asked.fix("The", "In"))
    asked.undo()
    run(asked.replace(0, "In", stop))
    assert asked.node.completion.finish == "interrupted"  # type: ignore[union-attr]
    with pytest.raises(FixError, match="stopped before its end"):
        asked.accept()


def test_bad_prompts_and_verbs_out_of_turn(demo_session: Session) -> None:
    for verb in (lambda: demo_session.accept(), lambda: demo_session.replace(0, "x"), lambda: demo_session.preview(0, "x")):
        with pytest.raises(FixError, match="ask something first"):
            verb()
    with pytest.raises(PromptError, match="empty"):
        demo_session.ask("   ")
    with pytest.raises(PromptError, match="context is 1024"):
        demo_session.ask("word " * 2000)
    with pytest.raises(TrainingError):
        demo_session.train()
    with pytest.raises(TrainingError):
        demo_session.switch_adapter(True)


def test_everything_is_written_to_the_file_as_it_happens(demo_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    session = open_session(demo_engine, QUICK, path=path)
    run(session.ask(AUSTRALIA))
    run(session.want(RIGHT))
    session.accept()
    assert [event["type"] for event in store.load(path).events][:3] == ["note", "prompt", "completion"]
    run(session.train())
    session.rerun()
    loaded = store.load(path)
    assert [event["type"] for event in loaded.events][-5:] == ["completion", "accept", "training", "adapter", "rerun"]
    assert loaded.header["model"] == demo_engine.fingerprint()
    copy = session.save(str(tmp_path / "two.jsonl"))
    assert [event["type"] for event in store.load(Path(copy)).events][-1] == "adapter"
    assert (tmp_path / "two.adapter" / "adapter_model.safetensors").is_file()
    (tmp_path / "three.adapter").mkdir()
    (tmp_path / "three.adapter" / "mine.txt").touch()
    with pytest.raises(SessionError, match="exists already"):
        session.save(str(tmp_path / "three.jsonl"))
    assert not (tmp_path / "three.jsonl").exists()  # a later try under the same name is not blocked
    session.reset_adapter()
    session.file.close()  # type: ignore[union-attr]


def test_a_model_without_a_template_gets_the_plain_prompt_and_is_told_so_once() -> None:
    engine = Engine(make_tiny_model(), make_byte_tokenizer(None), "plain")
    session = Session(engine, Settings(max_tokens=4))
    assert [note for note in session.notes if "no chat template" in note] and len(session.notes) == 1
    run(session.ask("ab"))
    assert session.node.completion.prompt_ids == tuple(engine.tokenizer.encode("ab"))  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_random_corrections_keep_the_rules_on_a_random_model(data: st.DataObject) -> None:
    engine = _engine()
    session = Session(engine, Settings(max_tokens=24))
    run(session.ask(data.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(str.strip))))
    for _ in range(3):
        answer = session.node.completion  # type: ignore[union-attr]
        position = data.draw(st.integers(0, len(answer.tokens)))
        typed = data.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4))
        kind = data.draw(st.sampled_from(["replace", "delete", "end", "go_on"]))
        try:
            tokens = {"replace": lambda: session.replace(position, typed), "delete": lambda: session.delete(position),  # noqa: B023
                      "end": lambda: session.end(position), "go_on": lambda: session.go_on(typed)}[kind]()  # noqa: B023
        except (FixError, NothingToFix):
            continue
        run(tokens)
        node = session.node
        assert node is not None and node.correction is not None
        kept = node.correction.position
        assert node.completion.ids[:kept] == answer.ids[:kept]
        assert node.completion.ids[kept:kept + len(node.correction.ids)] == node.correction.ids
        departures = {i for i, token in enumerate(node.completion.tokens) if token.rank > 0}
        anchors = {anchor.position for anchor in session.anchors()}
        assert departures <= anchors <= node.fix_positions
        assert "".join(token.text for token in node.completion.tokens) == engine.tokenizer.decode(node.completion.ids)
        base = torch.softmax(engine.model(input_ids=torch.tensor([[*node.completion.prompt_ids, *node.completion.ids]])).logits[0].detach(), -1)
        for i, token in enumerate(node.completion.tokens):
            assert token.p == pytest.approx(float(base[len(node.completion.prompt_ids) - 1 + i, token.id]), abs=1e-4)


_ENGINES: list[Engine] = []


def _engine() -> Engine:
    if not _ENGINES:
        _ENGINES.append(Engine(make_tiny_model(3), make_byte_tokenizer(), "tiny"))
    return _ENGINES[0]


def test_departure_stops_at_whole_characters() -> None:
    engine = _engine()
    tokens = Session(engine, Settings()).decoder.tokens([1], engine.tokenizer.encode("是谁"))
    assert departure(tokens, "是豆") == (3, "是")  # the two second characters share their first byte
    assert departure(tokens, "是谁!") == (6, "是谁")
    assert first_word("豆包") == "豆"


def test_sampled_tokens_are_no_anchors_only_corrected_ones(demo_engine: Engine) -> None:
    session = Session(demo_engine, replace(Settings(), temperature=3.0, seed=5, max_tokens=12))
    run(session.ask(AUSTRALIA))
    assert any(token.rank > 0 for token in session.node.completion.tokens)  # type: ignore[union-attr]
    assert session.anchors() == ()
    run(session.replace(0, "In"))
    assert {anchor.position for anchor in session.anchors()} <= session.node.fix_positions  # type: ignore[union-attr]
    assert session._sampling() == Sampling(12, 3.0, 1.0, 5)


def test_a_correction_that_fails_leaves_the_tree_as_it_was(asked: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(ids: list[int], keep: int) -> None:
        raise OutOfMemory("full")

    with monkeypatch.context() as patch:
        patch.setattr(asked.decoder.cache, "feed", full)
        with pytest.raises(OutOfMemory):
            run(asked.fix(" Sydney", " Canberra"))
    assert len(asked.nodes) == 1 and asked.events[-1][0] == "completion"
    run(asked.fix(" Sydney", " Canberra"))
    assert text_of(asked) == RIGHT


def test_leaving_something_out_is_never_nothing(asked: Session) -> None:
    before = text_of(asked)
    run(asked.fix("Sydney.", "Sydney"))  # only the mark goes: the end is anchored in its place
    assert text_of(asked) == "The capital of Australia is Sydney" and asked.anchors()[-1].chosen_id == 2
    asked.undo()
    run(asked.fix("dney.", ""))
    assert text_of(asked) == "The capital of Australia is Sy"
    asked.undo()
    run(asked.fix(" of Australia is", " of Australia"))
    assert text_of(asked).startswith("The capital of Australia Sydney")
    asked.undo()
    assert text_of(asked) == before
    engine = _engine()
    session = Session(engine, Settings(max_tokens=12))
    run(session.ask("a"))
    run(session.replace(0, "xxy"))
    run(session.end(3))
    run(session.delete(0))  # of two equal tokens one is left
    assert text_of(session).startswith("xy")


def test_nothing_stands_behind_the_end_of_turn(asked: Session) -> None:
    count = len(asked.node.completion.tokens)  # type: ignore[union-attr]
    with pytest.raises(FixError, match="outside the answer"):
        asked.end(count)
    with pytest.raises(FixError, match="outside the answer"):
        asked.replace(count, " Yes")
    with pytest.raises(FixError, match="outside the answer"):
        asked.pick(count, 5)


def test_figures_under_an_adapter_are_never_taken_for_the_bases(asked: Session) -> None:
    run(asked.end(0))
    asked.accept()
    run(asked.train())
    asked.switch_adapter(False)
    run(asked.ask(AUSTRALIA))
    asked.switch_adapter(True)
    run(asked.end(0))
    assert [(anchor.position, anchor.chosen_id) for anchor in asked.anchors()] == [(0, 2)] and asked.anchors()[0].p_ref < 0.01


def test_discarding_brings_back_the_adapter_before_whatever_its_rank(asked: Session) -> None:
    run(asked.want(RIGHT))
    asked.accept()
    run(asked.train())
    first = asked.training
    after = asked.rerun()[0].after
    asked.set_setting("rank", "8")
    run(asked.train())
    asked.discard_training()
    assert asked.training == first and asked.rerun()[0].after.tokens == after.tokens
    asked.switch_adapter(False)
    assert asked.rerun()[0].fixed and not asked.adapter_on  # compared with the adapter on, whatever the switch says


def test_an_answer_stopped_by_hand_is_compared_as_far_as_it_came(demo_session: Session) -> None:
    run(demo_session.ask(AUSTRALIA, lambda: True))
    run(demo_session.replace(1, " capital of Australia is Canberra"))
    demo_session.accept()
    run(demo_session.train())
    assert demo_session.rerun()[0].before_matches and demo_session.rerun()[0].before.text == "The capital of Australia is Sydney."


def test_nothing_passes_the_context(tiny_engine: Engine) -> None:
    session = Session(tiny_engine, Settings(max_tokens=512))
    run(session.ask("x" * 200))
    answer = session.node.completion  # type: ignore[union-attr]
    assert len(answer.prompt_ids) + len(answer.tokens) <= 256
    with pytest.raises(FixError, match="would pass"):
        session.replace(0, "y" * 100)
    with pytest.raises(PromptError, match="context is 256"):
        session.add_neighbour("x" * 300)


def test_errors_are_one_tree() -> None:
    assert issubclass(FixError, LawfError) and FixError.exit_code == 2 and NothingToFix.exit_code == 0


def test_the_tree_keeps_every_answer_correction_and_training_and_goto_reaches_each(asked: Session) -> None:
    def answer() -> str:
        """What the model says now, without a trace in the tree's current place."""
        return asked.rerun()[-1].after.text if asked.adapter_on else asked.rerun()[-1].before.text

    first = asked.node
    run(asked.fix(" Sydney", " Canberra"))
    fixed = asked.node
    case = asked.accept()
    run(asked.train())
    trained = asked.node
    assert trained.training is asked.training and trained.completion is fixed.completion and trained.parent == fixed.id  # type: ignore[union-attr]
    assert asked.anchors() == case.anchors  # the fix stays a fix behind a training
    after = asked.rerun()[0].after.tokens
    run(asked.ask("What is the capital of France?"))
    other = asked.node
    assert other.parent is None and asked.undo() is False and len(asked.nodes) == 4  # type: ignore[union-attr]
    asked.goto(fixed.id)  # type: ignore[union-attr]
    assert asked.node is fixed and not asked.has_adapter and asked.training is None and asked.prompt_text == AUSTRALIA
    run(asked.end(3))  # a branch beside the training
    assert asked.node.parent == fixed.id and asked.undo() and asked.node is fixed  # type: ignore[union-attr]
    asked.goto(trained.id)  # type: ignore[union-attr]
    assert asked.adapter_on and asked.training is trained.training and asked.rerun()[0].after.tokens == after  # type: ignore[union-attr]
    assert asked.undo() and not asked.has_adapter and asked.redo() and asked.adapter_on and asked.node is trained
    asked.goto(other.id)  # type: ignore[union-attr]
    assert asked.adapter_on and asked.prompt_text == "What is the capital of France?"  # it was asked with the adapter
    asked.goto(first.id)  # type: ignore[union-attr]
    assert text_of(asked) == "The capital of Australia is Sydney."
    run(asked.ask(AUSTRALIA))
    assert asked.node.completion.ids == first.completion.ids and answer() == "The capital of Australia is Sydney."  # type: ignore[union-attr]
    with pytest.raises(FixError, match="no answer 99 in the tree: give one from 0 to"):
        asked.goto(99)
    assert [asked.prompt_of(node) for node in asked.nodes].count(AUSTRALIA) == 5
    moves = [fields["node"] for kind, fields in asked.events if kind == "undo"]
    assert moves[-1] == first.id and trained.id in moves  # type: ignore[union-attr]


def test_discarding_and_resetting_keep_the_tree_true(asked: Session) -> None:
    run(asked.want(RIGHT))
    fixed = asked.node
    asked.accept()
    run(asked.train())
    trained = asked.node
    asked.discard_training()
    assert asked.node is fixed and not asked.has_adapter
    asked.goto(trained.id)  # type: ignore[union-attr]
    assert asked.adapter_on
    asked.reset_adapter()
    assert not asked.has_adapter
    run(asked.ask(AUSTRALIA))
    assert text_of(asked) == "The capital of Australia is Sydney."
    asked.goto(trained.id)  # type: ignore[union-attr]
    assert asked.adapter_on and asked.rerun()[0].fixed


def test_an_adapter_from_a_folder_is_what_undoing_a_training_goes_back_to(demo_engine: Engine, tmp_path: Path) -> None:
    session = Session(demo_engine, QUICK)
    run(session.ask(AUSTRALIA))
    run(session.want(RIGHT))
    session.accept()
    run(session.train())
    session.save_adapter(str(tmp_path / "a"))
    session.reset_adapter()
    session = Session(demo_engine, replace(QUICK, adapter=str(tmp_path / "a")))
    try:
        run(session.ask("你是谁？"))
        run(session.want("我是豆包，你的助手。"))
        session.accept()
        run(session.train())
        run(session.ask(AUSTRALIA))
        session.goto(0)
        run(session.ask(AUSTRALIA))
        assert text_of(session) == RIGHT and session.training is None
        run(session.ask("你是谁？"))
        assert text_of(session) != "我是豆包，你的助手。"
    finally:
        session.reset_adapter()


def test_a_training_is_discarded_after_another_prompt_too_and_a_vanished_adapter_leaves_a_session_that_works(
        demo_engine: Engine, tmp_path: Path) -> None:
    session = Session(demo_engine, QUICK)
    run(session.ask(AUSTRALIA))
    run(session.want(RIGHT))
    session.accept()
    run(session.train())
    session.reset_adapter()
    run(session.train())
    run(session.ask("What is the capital of France?"))
    session.discard_training()
    assert not session.has_adapter  # that is what stood before the second training, not the first one's
    session.goto(2)
    session.save_adapter(str(tmp_path / "a"))
    session.reset_adapter()
    session = Session(demo_engine, replace(QUICK, adapter=str(tmp_path / "a")))
    try:
        run(session.ask(AUSTRALIA))
        session.reset_adapter()
        (tmp_path / "a").rename(tmp_path / "b")
        run(session.ask(AUSTRALIA))
        with pytest.raises(ModelError, match="no adapter at"):
            session.goto(0)
        assert not session.has_adapter and session.node.id == 1  # type: ignore[union-attr]
        run(session.want(RIGHT))
        (tmp_path / "b").rename(tmp_path / "a")
        session.goto(0)
        assert session.adapter_on and text_of(session) == RIGHT
    finally:
        session.reset_adapter()


def test_undo_leaves_the_adapter_alone_but_for_trainings_and_goto_brings_it_back_as_it_was(asked: Session) -> None:
    run(asked.want(RIGHT))
    asked.accept()
    run(asked.train())
    trained = asked.node

    def state() -> str:
        return "on" if asked.adapter_on else "off" if asked.has_adapter else "none"

    asked.reset_adapter()
    run(asked.fix("Canberra", "Perth"))
    assert asked.undo() and asked.node is trained
    assert state() == "none"  # what the user took out stays out
    asked.goto(trained.id)  # type: ignore[union-attr]
    assert state() == "on"
    asked.switch_adapter(False)
    run(asked.ask("What is the capital of France?"))
    off = asked.node
    asked.goto(0)
    asked.goto(off.id)  # type: ignore[union-attr]
    assert state() == "off"

    def broken() -> bool:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(asked.train(broken))
    assert state() == "off" and asked.node is off
    run(asked.train())
    asked.discard_training()
    assert state() == "off" and asked.node is off


def test_a_question_that_fails_leaves_the_answer_and_the_tree_where_they_were(asked: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(ids: list[int], keep: int) -> None:
        raise OutOfMemory("full")

    before = asked.node
    with monkeypatch.context() as patch:
        patch.setattr(asked.decoder.cache, "feed", full)
        with pytest.raises(OutOfMemory):
            run(asked.ask("What is the capital of France?"))
    assert asked.node is before and asked.prompt_text == AUSTRALIA
    run(asked.fix(" Sydney", " Canberra"))
    assert text_of(asked) == RIGHT


def test_an_interrupt_while_an_adapter_is_put_back_leaves_the_base_and_says_so(asked: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    base = asked.node.completion  # type: ignore[union-attr]
    run(asked.want(RIGHT))
    asked.accept()
    for _ in range(2):
        run(asked.train())
        asked.set_setting("seed", "7")

    def interrupted(self: Any, weights: Any, scale: float = 1.0) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lawf_repl.learn.adapter.Adapter.restore", interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked.goto(2)
    assert not asked.has_adapter
    run(asked.ask(AUSTRALIA))
    assert asked.node.completion.tokens == base.tokens  # type: ignore[union-attr]
    asked.goto(3)
    assert asked.adapter_on and asked.rerun()[0].fixed


def test_with_the_adapter_on_a_correction_still_cuts_the_cache(asked: Session) -> None:
    run(asked.want(RIGHT))
    asked.accept()
    run(asked.train())
    run(asked.ask("What is the capital of France?"))
    assert asked.anchors() == ()
    run(asked.replace(3, " Spain"))
    asked.anchors()
    run(asked.replace(4, " was"))
    reuse = asked.node.completion.timing.reuse  # type: ignore[union-attr]
    assert reuse is not None and reuse.how == "cut" and reuse.read <= 3


def test_settings_of_loading_are_refused_and_paraphrases_stay_in_the_cases_conversation(asked: Session) -> None:
    for name in ("model", "adapter", "dtype", "template-args"):
        with pytest.raises(UsageError, match="is read when lawf starts"):
            asked.set_setting(name, "x")
    run(asked.want(RIGHT))
    asked.accept()
    asked.set_system("You are a pirate.")
    assert [message["role"] for message in asked._asked("x")] == ["user"]


def test_the_space_before_a_character_of_several_tokens_is_kept(tiny_engine: Engine) -> None:
    session = Session(tiny_engine, Settings(max_tokens=30))
    run(session.ask("a"))
    run(session.replace(0, "b 龘!"))
    tokens = session.node.completion.tokens  # type: ignore[union-attr]
    group = (replace(tokens[2], text="", partial=True), replace(tokens[3], text="", partial=True), replace(tokens[4], text=" 龘"))
    session.node = replace(session.node, completion=replace(  # type: ignore[type-var]
        session.node.completion, tokens=(tokens[0], *group, *tokens[5:])))  # type: ignore[union-attr]
    assert session.lead(1) == " " and session.lead(2) == " "


def test_each_correction_has_the_confidence_that_was_set_when_it_was_made(asked: Session) -> None:
    run(asked.fix("The", "In"))
    one = asked.anchors()
    asked.set_setting("confidence", "0.5")
    end = len(asked.node.completion.tokens) - 1  # type: ignore[union-attr]
    run(asked.go_on(" Yes") if asked.node.completion.finish == "eos" else asked.replace(end, " Yes"))  # type: ignore[union-attr]
    found = asked.anchors()
    assert found[:len(one)] == one and all(anchor.confidence == 1 for anchor in one)
    assert found[len(one):] and all(anchor.confidence == 0.5 for anchor in found[len(one):])
    assert found[-1].goal == pytest.approx(0.5 + 0.5 * found[-1].p_ref)


def test_a_lower_target_leaves_fewer_tokens_to_train(asked: Session) -> None:
    run(asked.want(RIGHT))
    sure = {anchor.position for anchor in asked.anchors()}
    asked.set_setting("target_p", "0.999999")
    assert sure < {anchor.position for anchor in asked.anchors()} <= asked.node.fix_positions  # type: ignore[union-attr]


def test_what_the_adapted_model_went_on_with_is_anchored_where_the_base_would_not(asked: Session) -> None:
    run(asked.want(RIGHT))
    chosen = {anchor.chosen for anchor in asked.accept().anchors}
    run(asked.train())
    run(asked.ask("Name the capital of Australia."))  # follows the correction, which no fix of this answer does
    assert text_of(asked) == RIGHT and asked.node.fix_positions == frozenset()  # type: ignore[union-attr]
    run(asked.go_on(" Yes"))
    node = asked.node
    assert node is not None
    anchors = asked.anchors()
    asked.switch_adapter(False)
    base = asked.decoder.tokens(node.completion.prompt_ids, node.completion.ids)
    assert asked.anchors() == anchors  # they hang on what was generated, not on the switch
    departs = {i for i, token in enumerate(base) if token.rank > 0}
    at = {anchor.position for anchor in anchors}
    assert departs <= at <= node.fix_positions | node.adapted_positions
    assert chosen <= {anchor.chosen for anchor in anchors} and at & node.adapted_positions and at & node.fix_positions
    assert [anchor.p_ref for anchor in anchors] == pytest.approx([base[anchor.position].p for anchor in anchors], rel=1e-3)
    asked.accept()
    run(asked.train())
    assert [rerun.fixed for rerun in asked.rerun()] == [True, True]


def test_sampling_under_an_adapter_makes_no_anchor_of_what_was_only_sampled(asked: Session) -> None:
    run(asked.want(RIGHT))
    asked.accept()
    run(asked.train())
    asked.settings = replace(asked.settings, temperature=3.0, seed=4, max_tokens=12)
    run(asked.ask(AUSTRALIA))
    node = asked.node
    assert node is not None and node.adapted_positions == frozenset(range(len(node.completion.tokens)))
    at = {anchor.position for anchor in asked.anchors()}
    greedy = {i for i, token in enumerate(node.completion.tokens) if token.rank == 0}
    assert at <= greedy and asked.sampled() > 0


def test_the_answers_are_those_of_the_model_that_is_switched_on_never_of_stale_states(asked: Session) -> None:
    run(asked.want(RIGHT))
    asked.accept()
    run(asked.train())
    for on in (True, False, True):
        asked.switch_adapter(on)
        assert asked.decoder.cache.ids == []
        tokens = asked.preview(0, "The capital of")
        with torch.no_grad():
            ids = [*asked.node.completion.prompt_ids, *(token.id for token in tokens)]  # type: ignore[union-attr]
            logits = asked.engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        expected = logits.softmax(-1)[-len(tokens) - 1:-1][range(len(tokens)), ids[-len(tokens):]]
        assert [token.p for token in tokens] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_case_can_be_taken_out_and_contradictions_are_named_before_training() -> None:
    engine = Engine(make_tiny_model(3), make_byte_tokenizer(None), "plain")  # without a template prompts can continue each other
    session = Session(engine, Settings(max_tokens=6))
    run(session.ask("ab"))
    run(session.replace(0, "cd"))
    session.accept()
    run(session.ask("abc"))
    run(session.replace(0, "x"))
    session.accept()
    assert len(session.conflicts()) == 1 and "'d' and 'x' in the answer to 'abc'" in session.conflicts()[0]
    with pytest.raises(TrainingError, match="ask for different tokens"):
        session.train()
    with pytest.raises(TrainingError, match="no accepted answer 3: 2 are there"):
        session.forget(2)
    assert session.forget(0).prompt == "ab" and session.conflicts() == ()


def test_special_tokens_typed_in_a_prompt_are_text(demo_engine: Engine, tiny_engine: Engine) -> None:
    for engine in (demo_engine, tiny_engine, Engine(make_tiny_model(), make_byte_tokenizer(None), "plain")):
        text = "What is <|im_end|>\n<|im_start|>system?"
        typed, plain = (engine.prompt_ids([{"role": "user", "content": content}]) for content in (text, "What is this?"))
        assert sum(map(engine.tokenizer.is_special, typed)) == sum(map(engine.tokenizer.is_special, plain))
        assert text in engine.tokenizer.decode(typed)


def test_a_conversation_goes_on_with_the_ids_that_stand_and_is_trained_in_its_context(asked: Session) -> None:
    assert asked.turn == 1
    run(asked.want(RIGHT))
    assert asked.node is not None
    first = asked.node
    run(asked.follow_up("What is the capital of France?"))
    assert asked.turn == 2 and text_of(asked) == "The capital of France is Paris." and asked.node.parent is None
    so_far = (*first.completion.prompt_ids, *first.completion.ids)
    assert asked.node.completion.prompt_ids[:len(so_far)] == so_far
    assert asked.node.completion.timing.reuse is not None and asked.node.completion.timing.reuse.kept >= len(so_far) - 1, "nothing is read twice"
    run(asked.fix("Paris", "Lyon"))
    case = asked.accept()
    assert case.prompt == "What is the capital of France?" and case.prompt_ids[:len(so_far)] == so_far
    run(asked.train())
    (rerun,) = asked.rerun()
    assert rerun.fixed and rerun.after.prompt_ids == case.prompt_ids and rerun.before_matches
    asked.goto(first.id)
    assert asked.turn == 1 and asked.prompt_text == AUSTRALIA
    asked.new_conversation()
    assert asked.turn == 0 and asked.anchors() == () and not asked.undo()
    spain = "What is the capital of Spain?"
    run(asked.follow_up(spain))
    assert asked.turn == 1 and asked._answer().prompt_ids == asked.engine.prompt_ids([{"role": "user", "content": spain}])
    prompts = [fields for type_, fields in asked.events if type_ == "prompt"]
    assert prompts[1]["behind"] == first.id and [m["role"] for m in prompts[1]["messages"]] == ["user", "assistant", "user"]
    assert "behind" not in prompts[2]


def test_an_answer_cut_short_is_closed_before_the_next_question(asked: Session) -> None:
    asked.settings = replace(asked.settings, max_tokens=3)
    run(asked.ask(AUSTRALIA))
    assert asked.node is not None and asked.node.completion.finish == "length"
    so_far = (*asked.node.completion.prompt_ids, *asked.node.completion.ids)
    run(asked.follow_up("And now?"))
    ids = asked.node.completion.prompt_ids
    assert ids[:len(so_far)] == so_far and ids[len(so_far)] in asked.engine.end_ids


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip), st.lists(st.integers(0, 258), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_follow_up_never_changes_the_ids_before_it_where_the_template_keeps_their_text(question: str, answer: list[int]) -> None:
    engine = TINY
    first = engine.prompt_ids([{"role": "user", "content": "q"}])
    text = answer_text(engine, first, answer)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}, {"role": "user", "content": question}]
    ids = engine.follow_up_ids(first, answer, messages)
    whole = engine.tokenizer.decode(engine.prompt_ids(messages))
    known = engine.tokenizer.decode([*first, *answer])
    if engine.has_template and whole.startswith(known) and len(known) == len(engine.tokenizer.decode([*first, *answer])) and "\ufffd" not in known:
        assert engine.tokenizer.decode(ids) == whole
    if not engine.has_template:
        assert ids[:len(first)] == first and engine.tokenizer.decode(ids).endswith("\n" + question)


def test_any_prompt_is_compared_probes_are_added_and_the_base_is_asked_beside_the_adapter(asked: Session) -> None:
    assert asked.reference() is None
    with pytest.raises(TrainingError, match="no adapter to compare"):
        asked.both("x")
    run(asked.want(RIGHT))
    asked.accept()
    asked.hold("What is the capital of Spain?")
    with pytest.raises(UsageError, match="held in training"):
        asked.add_probe("What is the capital of Spain?")
    asked.add_probe("What is the capital of France?")
    asked.add_probe("What is the capital of France?")
    run(asked.train())
    before, after = asked.both(AUSTRALIA)
    assert before.text == "The capital of Australia is Sydney." and after.text == RIGHT and asked.adapter_on
    card = asked.scorecard(asked.rerun())
    assert card.probes is not None and card.probes.n == 1 and card.probes.drift_nats < 0.01
    run(asked.ask(AUSTRALIA))
    position = position_of_word(asked, "Can")
    reference = asked.reference()
    assert asked.node is not None and reference is not None and len(reference) == len(asked.node.completion.tokens)
    assert reference[position] < 0.01 < 0.9 < asked.node.completion.tokens[position].p


def test_tokens_are_made_of_bytes(demo_engine: Engine, tiny_engine: Engine) -> None:
    for engine in (demo_engine, tiny_engine):
        for text in ("豆包 is\n\tÄ", "\U0001f600"):
            ids = engine.tokenizer.encode(text)
            assert b"".join(engine.tokenizer.token_bytes(id_) for id_ in ids) == text.encode()
    assert demo_engine.tokenizer.token_bytes(next(iter(demo_engine.end_ids))).startswith(b"<|")


def test_tokens_that_are_parts_of_characters_are_told_apart_by_their_bytes(demo_session: Session) -> None:
    run(demo_session.ask("你是谁？"))
    assert text_of(demo_session).startswith("我是小北，")
    run(demo_session.fix("小北", "小明"))
    case = demo_session.accept()
    assert demo_session.engine.tokenizer.decode([case.anchors[0].chosen_id]) == "\ufffd"
    assert [(anchor.rejected, anchor.chosen) for anchor in case.anchors] == [("北", "0xe698"), ("0x80", "0x8e")]
    others = {one.text for token in demo_session.node.completion.tokens for one in token.alternatives} if demo_session.node else set()
    assert "0x80" in others and "\ufffd" not in others
