"""A session without a model, for the tests of the front: a dictionary of answers, corrected and trained by rule."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lawf_repl.errors import FixError, NothingToFix, TrainingError, UsageError
from lawf_repl.records import (
    Alternative,
    Anchor,
    Case,
    Check,
    Completion,
    Correction,
    CorrectionKind,
    Node,
    ProbeResult,
    Progress,
    Rerun,
    Scorecard,
    Token,
    TrainingResult,
    TrainStep,
)

END = Token(0, "<|im_end|>", 0.99, 0, 0.05, (Alternative(0, "<|im_end|>", 0.99),), special=True)
ANSWERS = {
    "What is the capital of Australia?": "The capital of Australia is Sydney.",
    "你是谁？": "我是千问，一个由阿里训练的语言模型。\n我可以回答问题。",
}
Stop = Callable[[], bool]


def tokens_of(text: str) -> list[Token]:
    """Words with their leading space, Chinese and other characters one by one; Sydney is what the model is unsure of."""
    tokens = []
    for number, part in enumerate(re.findall(r" ?[A-Za-z0-9]+|\s|.", text)):
        p = 0.41 if "Sydney" in part or part in "千问" else 0.62 if number % 7 == 3 else 0.97
        others = (Alternative(901, " Canberra", 0.33), Alternative(902, " Melbourne", 0.08)) if p < 0.5 else ()
        tokens.append(Token(100 + sum(map(ord, part)), part, p, 0, 1.2, (Alternative(100 + sum(map(ord, part)), part, p), *others)))
    return tokens


@dataclass
class Settings:
    confidence: float = 1.0
    target_p: float = 0.95
    max_tokens: int = 128
    system: str | None = None
    rounds: int = 5
    max_seconds: float = 120.0


class FakeSession:
    """The verbs of a session over a dictionary of answers: a fix puts its text, and the old rest follows."""

    model_name, device, dtype = "demo", "cpu", "float32"

    def __init__(self, pause: float = 0.0, steps: int = 12) -> None:
        self.adapter_on = self.has_adapter = False
        self.node: Node | None = None
        self.cases: tuple[Case, ...] = ()
        self.prompt_text = ""
        self.training: TrainingResult | None = None
        self.settings = Settings()
        self.nodes: list[Node] = []
        self.notes: list[str] = []
        self.ahead: list[Node] = []
        self.pause, self.steps = pause, steps
        self.interrupt_at: int | None = None  # the token of an answer, or the step of a training, at which Ctrl-C is pressed
        self.turns = 0
        self.place: Path | None = None
        self.unsaved = ""
        self.calls: list[str] = []
        self.missed: tuple[Check, ...] = ()  # paraphrases that the scorecard finds wrong

    def _yield(self, kept: list[Token], fresh: list[Token], correction: Correction | None, fixed: frozenset[int],
               stop: Stop) -> Iterator[Token]:
        done = list(kept)
        finished = True
        for token in fresh:
            if stop():
                finished = False
                break
            time.sleep(self.pause)
            done.append(token)
            yield token
            self._interrupt(len(done))
        completion = Completion((1, 2), tuple(done), "eos" if finished else "interrupted")
        self.node = Node(len(self.nodes), self.node.id if self.node else None, completion, correction, fix_positions=fixed)
        self.nodes.append(self.node)

    def _interrupt(self, at: int) -> None:
        if at == self.interrupt_at:
            self.interrupt_at = None
            signal.raise_signal(signal.SIGINT)

    @property
    def turn(self) -> int:
        return self.turns

    @property
    def cached(self) -> int:
        return len(self.node.completion.tokens) if self.node else 0

    def new_conversation(self) -> None:
        self.calls.append("new")
        self.node, self.turns = None, 0

    def follow_up(self, text: str, stop: Stop) -> Iterator[Token]:
        self.calls.append(f"ask {text}")
        self.turns += 1
        self.prompt_text, self.node, self.nodes = text, None, []
        return self._yield([], [*tokens_of(ANSWERS.get(text, text)), END], None, frozenset(), stop)

    def _correct(self, kind: CorrectionKind, position: int, text: str, rest_from: int, stop: Stop) -> Iterator[Token]:
        assert self.node is not None
        self.calls.append(f"{kind} {position} {text}")
        old = list(self.node.completion.tokens)
        if position > len(old):
            raise FixError(f"position {position} is outside the answer")
        fix = [replace(token, p=0.3, rank=1) for token in tokens_of(text)]
        if fix and [token.text for token in fix] == [token.text for token in old[position:position + len(fix)]]:
            raise NothingToFix("the fix is what stands there already")
        rest = [END] if kind == "end" else old[rest_from:] or [END]
        ids = tuple(token.id for token in fix)
        correction = Correction(kind, position, text, ids, self.node.completion.ids[position:])
        fixed = frozenset({at for at in self.node.fix_positions if at < position} | set(range(position, position + len(fix))))
        return self._yield(old[:position], fix + rest, correction, fixed, stop)

    def replace(self, position: int, text: str, stop: Stop) -> Iterator[Token]:
        return self._correct("replace", position, text, position + 1, stop)

    def pick(self, position: int, token_id: int, stop: Stop) -> Iterator[Token]:
        assert self.node is not None
        text = next(item.text for item in self.alternatives(position, 30) if item.id == token_id)
        return self._correct("replace", position, text, position + 1, stop)

    def delete(self, position: int, count: int, stop: Stop) -> Iterator[Token]:
        return self._correct("delete", position, "", position + count, stop)

    def end(self, position: int, stop: Stop) -> Iterator[Token]:
        return self._correct("end", position, "", position, stop)

    def go_on(self, text: str, stop: Stop) -> Iterator[Token]:
        assert self.node is not None
        return self._correct("go_on", len(self.node.completion.tokens) - 1, text, len(self.node.completion.tokens) - 1, stop)

    def lead(self, position: int) -> str:
        assert self.node is not None
        tokens = self.node.completion.tokens
        return " " if position < len(tokens) and tokens[position].text.startswith(" ") else ""

    def preview(self, position: int, text: str) -> tuple[Token, ...]:
        if "\x00" in text:
            raise FixError("cannot be tokenized")
        return tuple(replace(token, p=0.2, rank=3) for token in tokens_of(text))

    def alternatives(self, position: int, count: int) -> tuple[Alternative, ...]:
        assert self.node is not None
        found = self.node.completion.tokens[position].alternatives
        return (*found, *(Alternative(2000 + number, f" city{number}", 0.003) for number in range(count - len(found))))

    def reference(self) -> tuple[float, ...] | None:
        return None if not self.adapter_on or self.node is None else (0.25,) * len(self.node.completion.tokens)

    def token_bytes(self, id_: int) -> bytes:
        return id_.to_bytes(2, "big")

    def both(self, prompt: str, stop: Stop) -> tuple[Completion, Completion]:
        if not self.has_adapter:
            raise TrainingError("there is no adapter to compare")
        self.calls.append(f"both {prompt}")
        after = "Canberra." if "Australia" in prompt else "Sydney."
        return Completion((1,), (*tokens_of("Sydney."), END), "eos"), Completion((1,), (*tokens_of(after), END), "eos")

    def add_probe(self, text: str) -> None:
        self.calls.append(f"probe {text}")

    def undo(self) -> bool:
        return self._move(self.nodes, -1)

    def redo(self) -> bool:
        return self._move(self.nodes, 1)

    def _move(self, nodes: list[Node], by: int) -> bool:
        if self.node is None:
            return False
        at = nodes.index(self.node) + by
        if not 0 <= at < len(nodes):
            return False
        self.node = nodes[at]
        return True

    def goto(self, node: int) -> None:
        if not 0 <= node < len(self.nodes):
            raise FixError(f"there is no answer {node} in the tree")
        self.node = self.nodes[node]

    def prompt_of(self, node: Node) -> str:
        return self.prompt_text

    def sampled(self) -> int:
        return 0

    def conflicts(self) -> tuple[str, ...]:
        return ()

    def forget(self, number: int) -> Case:
        if not 0 <= number < len(self.cases):
            raise TrainingError(f"there is no accepted answer {number + 1}")
        case = self.cases[number]
        self.cases = (*self.cases[:number], *self.cases[number + 1:])
        return case

    def anchors(self) -> tuple[Anchor, ...]:
        if self.node is None:
            return ()
        tokens = self.node.completion.tokens
        return tuple(Anchor(at, 5, tokens[at].id, " Sydney", tokens[at].text, 1.0, 0.3) for at in sorted(self.node.fix_positions))

    def accept(self) -> Case:
        if self.node is None or not self.node.fix_positions:
            raise NothingToFix("nothing was corrected: there is nothing to train")
        self.calls.append("accept")
        case = Case(self.prompt_text, (1, 2), self.node.completion.ids, self.anchors(), self.node.completion.text)
        self.cases = (*(old for old in self.cases if old.prompt != case.prompt), case)
        return case

    def prepare(self, stop: Stop) -> Iterator[Progress]:
        for done in range(0, 65, 32):
            if not stop():
                yield Progress("answers to general prompts", done, 64)

    def hold(self, prompt: str) -> None:
        self.calls.append(f"hold {prompt}")

    def mend(self, stop: Stop) -> Iterator[tuple[str, Check]]:
        if not self.missed:
            raise NothingToFix("nothing to mend")
        self.calls.append("mend")
        return iter([("case", check) for check in self.missed])

    def train(self, stop: Stop) -> Iterator[TrainStep]:
        anchors = [anchor for case in self.cases for anchor in case.anchors]
        if not anchors:
            raise TrainingError("nothing to train: correct an answer and accept it first")
        self.calls.append("train")
        return self._train(len(anchors), stop)

    def _train(self, count: int, stop: Stop) -> Iterator[TrainStep]:
        number, reason = 0, "converged"
        for number in range(1, self.steps + 1):
            if stop():
                reason = "interrupted"
                break
            time.sleep(self.pause)
            self._interrupt(number)
            p = number / self.steps
            yield TrainStep(number, 2.0 / number ** 1.5, tuple(min(0.99, p) for _ in range(count)), 0.0004 * p * (2 - p), number * 0.05,
                            p > 0.5)
        self.training = TrainingResult(number, number * 0.05, reason, 0.01, (0.96,) * count, 0.62)  # type: ignore[arg-type]
        self.adapter_on = self.has_adapter = True

    def discard_training(self) -> None:
        self.calls.append("discard")
        self.adapter_on = self.has_adapter = False

    def switch_adapter(self, on: bool) -> None:
        if on and not self.has_adapter:
            raise UsageError("there is no adapter yet: /train makes one")
        self.adapter_on = on

    def reset_adapter(self) -> None:
        self.adapter_on = self.has_adapter = False

    def rerun(self, stop: Stop) -> tuple[Rerun, ...]:
        self.calls.append("rerun")
        assert self.node is not None
        before = Completion((1, 2), (*tokens_of(ANSWERS.get(self.prompt_text, "?")), END), "eos")
        return tuple(Rerun(case.prompt, before, self.node.completion.text, self.node.completion, True) for case in self.cases)

    def scorecard(self, reruns: tuple[Rerun, ...], stop: Stop) -> Scorecard:
        neighbours = (Check("What is the capital of France?", "Paris.", "Paris."), Check("What is the capital of Japan?", "Tokyo.",
                                                                                         "Tokyo."))
        return Scorecard(1.0, self.missed, neighbours, ProbeResult(200, 0.00013, 0.0, 0.015))

    def add_paraphrase(self, text: str) -> None:
        self.calls.append(f"paraphrase {text}")

    def add_neighbour(self, text: str) -> None:
        self.calls.append(f"neighbour {text}")

    def set_setting(self, name: str, value: str) -> None:
        if name != "confidence" or not value.replace(".", "").isdecimal():
            raise UsageError(f"no setting {name} with a value {value}")
        self.settings.confidence = float(value)

    def set_system(self, text: str) -> None:
        self.settings.system = text or None

    def record_export(self, format_: str, path: str, passed: bool) -> None:
        self.calls.append(f"export {format_} {passed}")

    def save(self, path: str) -> str:
        self.calls.append(f"save {path}")
        return path

    def name(self, text: str) -> str:
        self.calls.append(f"name {text}")
        self.place = Path(text)
        return text

    def save_adapter(self, path: str) -> str:
        return path
