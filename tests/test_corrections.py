"""The rules of correcting, on every kind of tokenizer: over ten thousand random corrections of random answers."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, DynamicCache, LlamaConfig

from lawf_repl import corrections, store
from lawf_repl.config import Settings
from lawf_repl.engine.base import DEMO_MODEL, Engine
from lawf_repl.errors import FixError, LawfError, NothingToFix
from lawf_repl.learn.objective import make_target, target_distribution
from lawf_repl.records import Completion, Node, Token
from lawf_repl.session import Session
from lawf_repl.spans import group_start
from tests.tokenizer_zoo import END_TOKENS, LOSSY, ZOO, load_real_qwen2

ANSWERS = (4, 10, 24)        # tokens of an answer at most
SESSIONS = {"qwen2": 80}     # of each tokenizer; the real one is slow
MANY = 300
TRIES = 7                    # corrections and moves of each session
AT_LEAST = {"qwen2": 200, "unigram": 400, "wordpiece": 200}  # corrections made; what those cannot write is refused
MOST = 1050                  # for all others: 9 * 1050 + 400 + 200 are more than ten thousand, without the real one
NAMES = [*sorted(ZOO), "demo", "qwen2"]


class TableModel(torch.nn.Module):
    """Logits that hang on the last three tokens, looked up in a random table; the cache holds the tokens, so a wrong cut shows.

    All of the vocabulary is likely somewhere: broken bytes, special tokens, ends of turn.
    """

    def __init__(self, size: int, end_ids: frozenset[int]) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=1, num_attention_heads=1, hidden_size=1, vocab_size=size, max_position_embeddings=4096,
                                  eos_token_id=None)
        self.generation_config = SimpleNamespace(eos_token_id=sorted(end_ids))
        self.layers = torch.nn.ModuleList([torch.nn.Linear(1, 1)])  # what find_targets looks for
        generator = torch.Generator().manual_seed(7)
        rows = max(16, min(997, 2_000_000 // size))
        self.table = 3 * torch.randn(rows, size, generator=generator)
        self.table[::9, sorted(end_ids)] = 20.0
        self.table[1::9, sorted(end_ids)[:1]] = 20.0  # sure, and of one kind
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: torch.Tensor, past_key_values: DynamicCache | None = None, use_cache: bool = True,
                logits_to_keep: int = 0) -> Any:
        seen = input_ids[:, None, :, None].float()
        if past_key_values is not None and use_cache:
            seen, _ = past_key_values.update(seen, seen, 0)
        ids = torch.nn.functional.pad(seen[0, 0, :, 0].long(), (2, 0))
        keys = (ids[2:] * 31 + ids[1:-1] * 17 + ids[:-2] * 7) % len(self.table)
        logits = self.table[keys[-input_ids.shape[1]:]][None]
        return Output(logits=logits[:, -logits_to_keep:], past_key_values=past_key_values or DynamicCache())


class Output(dict[str, Any]):
    """Fields by name and by key, as a model's output has them."""

    __getattr__ = dict.__getitem__


@cache
def engine_of(name: str) -> Engine:
    tokenizer: Any = load_real_qwen2() if name == "qwen2" else AutoTokenizer.from_pretrained(DEMO_MODEL) if name == "demo" else ZOO[name]()
    if tokenizer is None:
        pytest.skip("the real Qwen2 tokenizer is not here")
    ends = frozenset(int(tokenizer.convert_tokens_to_ids(text)) for text in END_TOKENS.get(name, (tokenizer.eos_token,)))
    return Engine(TableModel(len(tokenizer), ends), tokenizer, name)


# What is typed: whole words and their pieces, spaces and newlines of all kinds, characters of several bytes, tokens or code points, marks as text.
PIECES = ["The", " capital", " Can", "berra", "豆", "豆包", "，", "é", "e\u0301", "\u0301",
          "👩‍👩‍👧", "\u200d", "\U0001f1e6\U0001f1fa", " ", "  ", "\n", "\n\n",
          "\r\n", "\t", "\xa0", "שלום", "مرحبا", "ﬁ", "①",
          "<|im_end|>", "</s>", "<s>", "<eos>", "<unk>", "<think>", "<0x0A>", "▁", "▁▁", "##ing", "Ġ", "'s",
          " n't", " .", ",", "\"", "{", "0", "12", "\x00", "\x1b[31m", "\ufffd", "\ufeff", "\U00010348", "ß", "a", "b", "s", "."]
TYPED = st.one_of(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join),
                  st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6))


ANYWHERE = st.integers(0, 2**32)  # bounded by a remainder: draws from a small range are mostly its ends


@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_random_corrections_keep_the_rules(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = engine_of(name)
    seen: Counter[str] = Counter()
    folder = tmp_path_factory.mktemp(name)

    @settings(max_examples=SESSIONS.get(name, MANY), deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def play(data: st.DataObject) -> None:
        one_session(engine, data, seen, folder)

    play()
    assert seen["corrected"] >= AT_LEAST.get(name, MOST), seen
    typed = () if name in LOSSY else ("go_on", "fix")  # most of what is typed is refused there
    assert all(seen[kind] > 2 for kind in ("replace", "delete", "end", "pick", "undo", "redo", "goto", *typed)), seen
    assert seen["empty"] and seen["limit"] and seen["ended"] and seen["first"], seen
    if name not in LOSSY:
        assert seen["refused"] == 0, seen
    # what must have come up for the rest to mean anything
    assert seen["broken"] > 20 or name in LOSSY, seen


def one_session(engine: Engine, data: st.DataObject, seen: Counter[str], folder: Path) -> None:
    session = Session(engine, Settings(max_tokens=data.draw(st.sampled_from(ANSWERS))))
    prompt = data.draw(TYPED.filter(str.strip))
    try:
        list(session.ask(prompt))
    except LawfError as error:  # a template may refuse a mark that its tokenizer makes of plain text
        assert "sanitize" in str(error), error
        return
    made: dict[int, Completion] = {}
    for _ in range(TRIES):
        node = current(session)
        made[node.id] = node.completion
        kind = data.draw(st.sampled_from(["replace", "replace", "replace", "pick", "delete", "end", "go_on", "fix", "undo", "goto"]))
        if kind in ("undo", "goto"):
            move(session, kind, data, made)
            seen[kind] += 1
            continue
        try:
            shown = correct(session, kind, data)
        except (FixError, NothingToFix) as error:
            seen["refused"] += "cannot write" in str(error)
            assert current(session) is node
            continue
        seen[kind] += 1
        seen["corrected"] += 1
        check(session, node, shown)
        count(current(session), seen)
        after = current(session)
        assert session.undo() and current(session) is node and session.redo() and current(session) is after
        seen["redo"] += 1
    path = folder / f"{seen['sessions']}.jsonl"
    seen["sessions"] += 1
    session.save(str(path))
    events = store.load(path).events
    saved = [event for event in events if event["type"] == "completion"]
    assert [store.completion_from_json({key: event[key] for key in ("prompt_ids", "tokens", "finish", "timing", "text")}) for event in saved] \
        == [node.completion for node in session.nodes]
    for event, node in zip((event for event in events if event["type"] == "correction"),
                           (node for node in session.nodes if node.correction), strict=True):
        assert store.correction_from_json(event) == node.correction and event["node"] == node.id and event["parent"] == node.parent


def current(session: Session) -> Node:
    assert session.node is not None
    return session.node


def move(session: Session, kind: str, data: st.DataObject, made: dict[int, Completion]) -> None:
    """Somewhere else in the tree; what stands there is what stood there."""
    if kind == "undo":
        parent = current(session).parent
        assert session.undo() == (parent is not None)
        assert parent is None or current(session).id == parent
    else:
        session.goto(data.draw(st.sampled_from(sorted(made))))
    assert current(session).completion == made[current(session).id]


def correct(session: Session, kind: str, data: st.DataObject) -> str:
    """One correction; the text that the user then sees at the answer's start: what stood there and was kept, and what was typed."""
    answer = current(session).completion
    last = len(answer.tokens) - (answer.finish == "eos")
    position = data.draw(ANYWHERE) % (last + 1)
    before = "".join(token.text for token in answer.tokens[:group_start(answer.tokens, position)])
    if kind == "replace":
        typed = data.draw(TYPED)
        if data.draw(st.booleans()):
            typed = and_on(session, position, typed)
        list(session.replace(position, typed))
        return before + typed
    if kind == "go_on":
        typed = data.draw(TYPED)
        list(session.go_on(typed))
        return "".join(token.text for token in answer.tokens[:last]) + typed
    if kind == "pick":
        token_id = data.draw(ANYWHERE) % len(session.engine.tokenizer.hub)
        list(session.pick(position, token_id))
        return before.rstrip("\ufffd")  # the token picked may complete what was broken there
    if kind == "end":
        list(session.end(position))
        return before
    if kind == "delete":
        tokens_gone = data.draw(st.integers(1, 3))
        list(session.delete(position, tokens_gone))
        return before.rstrip("\ufffd")  # so may what stood behind the deleted one
    start = data.draw(ANYWHERE) % max(len(answer.text), 1)
    old = answer.text[start:start + data.draw(st.integers(1, 4))]
    new = data.draw(TYPED)
    list(session.fix(old, new))
    return answer.text[:answer.text.find(old)] + new


def and_on(session: Session, position: int, typed: str) -> str:
    """`typed` and what the model would say next: a fix with a token that is the base's choice, but often not a sure one."""
    position, kept = corrections.kept(current(session).completion, position)
    more = session.decoder.alternatives([*kept, *(token.id for token in session.preview(position, typed))], 1)[0]
    special = session.engine.tokenizer.is_special(more.id)
    return typed if special or "\ufffd" in more.text else typed + more.text


def check(session: Session, before: Node, shown: str) -> None:
    engine, node = session.engine, current(session)
    answer, act = node.completion, node.correction
    assert act is not None
    old, ids, prompt = before.completion.ids, answer.ids, list(answer.prompt_ids)
    # what is kept is kept, id for id, and what was put there is there
    assert ids[:act.position] == old[:act.position] and ids[act.position:act.position + len(act.ids)] == act.ids
    assert act.removed_ids == old[act.position:]
    assert act.removed_ids[:1] != act.ids[:1]  # what stood there already is kept as it was generated
    # prefix and fix decode to what the user saw and typed; every token shows its part of the text
    decode = engine.tokenizer.decode
    behind = decode([*prompt, *ids])
    assert behind.startswith(decode(prompt)) and behind[len(decode(prompt)):] == "".join(token.text for token in answer.tokens)
    assert decode([*prompt, *ids[:act.position + len(act.ids)]])[len(decode(prompt)):].startswith(shown)
    # every departure from the base's choice is an anchor, every anchor lies in a fix and was not sure
    logits = engine.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1:-1]  # (T, V)
    p_ref = logits.softmax(-1)[range(len(ids)), ids]
    departs = set((logits.argmax(-1) != torch.tensor(ids)).nonzero()[:, 0].tolist())
    anchors = session.anchors()
    at = {anchor.position for anchor in anchors}
    assert departs <= at <= node.fix_positions
    assert at == departs | {i for i in node.fix_positions if p_ref[i] < session.settings.target_p}
    assert all(anchor.chosen_id == ids[anchor.position] != anchor.rejected_id for anchor in anchors)
    assert [anchor.p_ref for anchor in anchors] == pytest.approx([float(p_ref[anchor.position]) for anchor in anchors], abs=1e-5)
    # the greedy decoding of the target distribution gives back the accepted completion
    target = make_target(logits.log_softmax(-1), [len(ids)], [anchors])
    assert target_distribution(target).argmax(-1).tolist() == list(ids)


def count(node: Node, seen: Counter[str]) -> None:
    """What sort of answer and correction came up."""
    answer, act = node.completion, node.correction
    assert act is not None
    seen["empty"] += answer.finish == "eos" and len(answer.tokens) == 1
    seen["limit"] += answer.finish == "length"
    seen["ended"] += answer.finish == "eos"
    seen["first"] += act.position == 0
    seen["broken"] += any(token.partial or "\ufffd" in token.text for token in answer.tokens)


def token(id_: int, text: str, partial: bool = False) -> Token:
    return Token(id_, text, 0.5, 0, 0.0, partial=partial)


def test_an_answer_that_ends_at_another_end_of_turn_ends_there_already() -> None:
    answer = Completion((1,), (token(5, "a"), Token(9, "</s>", 0.9, 0, 0.0, special=True)), "eos")
    with pytest.raises(NothingToFix, match="ends there already"):
        corrections.ending(answer, 1, end_id=2)
    assert corrections.ending(answer, 0, end_id=2).ids == (2,)


def test_a_character_goes_as_a_whole_and_an_empty_token_on_its_own() -> None:
    tokens = (token(5, "", True), token(6, "", True), token(7, "豆"), token(8, ""), token(9, "x"), token(10, "y"))
    answer = Completion((1,), tokens, "length")
    assert corrections.deletion(answer, 1, 1, 2).position == 0
    assert corrections.deletion(answer, 0, 1, 2).ids == (8, 9)
    assert corrections.deletion(answer, 3, 1, 2) == corrections.settled(answer, "delete", 3, [9], "")
    with pytest.raises(FixError, match="cannot be ended"):
        corrections.deletion(answer, 5, 1, None)
