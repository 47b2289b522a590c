"""An Ollama Modelfile: base and LoRA as GGUF, the chat template in Ollama's language, the parameters taken over.

The chat template is Jinja, a program; Ollama's are Go templates. What surrounds the messages is found by rendering marked
conversations, and the result is checked by rendering others both ways: a template that is more than that is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lawf_repl.engine.base import TEMPLATE_ERRORS, Engine
from lawf_repl.errors import ExportError, PromptError
from lawf_repl.records import Message

ROLES = ("system", "user", "assistant")
VERSIONS = """# Which Ollama takes this file, as its users report (no Ollama was run here): GGUF adapters came with 0.3.x in autumn 2024.
# From 0.6 on, models that Ollama runs on its own engine (Gemma 3 was the first) fail at the first request with
# "loras are not yet implemented"; from 0.34.1 on, `ollama create` refuses ADAPTER. There, use lawf export --format merged
# and FROM that folder, with the TEMPLATE and PARAMETER lines below."""


@dataclass(frozen=True)
class Pieces:
    """What a chat template puts around messages."""

    begin: str                       # before the first message, the same always
    default: str                     # where no system message is given
    around: dict[str, tuple[str, str]]  # by role
    answer: str                      # before the model's answer

    def render(self, messages: Sequence[Message]) -> str:
        """What Ollama renders from `go_template`."""
        lead = self.begin + ("" if messages[0]["role"] == "system" else self.default)
        return lead + "".join(self.around[m["role"]][0] + m["content"] + self.around[m["role"]][1] for m in messages) + self.answer

    def go_template(self) -> str:
        """The same as a Go template."""
        default = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{self.default}{{{{ end }}}}' if self.default else ""
        given = [role for role in ROLES if role in self.around]
        roles = "".join(f'{{{{ {"else " if number else ""}if eq .Role "{role}" }}}}{"{{ .Content }}".join(self.around[role])}'
                        for number, role in enumerate(given))
        return f"{self.begin}{default}{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def find_pieces(engine: Engine) -> Pieces:
    """The pieces of the engine's template. Raises ExportError where a conversation comes out otherwise than they say."""
    def rendered(*messages: tuple[str, str]) -> str:
        try:
            return str(engine.tokenizer.hub.apply_chat_template([{"role": role, "content": text} for role, text in messages],
                                                                tokenize=False, add_generation_prompt=True, **engine.template_args))
        except TEMPLATE_ERRORS as error:
            raise PromptError(str(error)) from error

    if not engine.has_template:
        return Pieces("", "", {role: ("", "") for role in ROLES}, "")
    try:
        user = rendered(("user", "MARKa"))
        talk = rendered(("user", "MARKa"), ("assistant", "MARKb"), ("user", "MARKc"))
        try:
            system = rendered(("system", "MARKs"), ("user", "MARKa"))
        except PromptError:
            system = ""
        pieces = _pieces(user, talk, system)
        tests = [[("user", "one {x}")], [("user", "p\n q"), ("assistant", "r s"), ("user", "t"), ("assistant", "u"), ("user", "v")]]
        tests += [[("system", "be brief"), ("user", "x"), ("assistant", "y"), ("user", "z")]] if system else []
        for test in tests:
            if rendered(*test) != pieces.render([{"role": role, "content": text} for role, text in test]):
                raise ValueError("a conversation comes out otherwise")
    except (ValueError, PromptError) as error:
        raise ExportError(f"the chat template of {engine.name} cannot be written as Ollama's ({str(error)[:80]}): export as gguf and serve it with "
                          "llama-server --jinja") from error
    bos = engine.tokenizer.hub.bos_token
    if bos and pieces.begin.startswith(bos):
        pieces = replace(pieces, begin=pieces.begin.removeprefix(bos))  # Ollama puts it there itself
    if '"""' in pieces.go_template() or any("{{" in part for part in (pieces.begin, pieces.default, pieces.answer)):
        raise ExportError(f"the chat template of {engine.name} has marks that Ollama's own language uses: export as gguf")
    return pieces


def _pieces(user: str, talk: str, system: str) -> Pieces:
    """Pieces from a rendered question, a rendered talk of three messages, and one with a system message ("" where that is refused)."""
    head, tail = _split(user, "MARKa")
    first, rest = _split(talk, "MARKa")
    middle, last = _split(rest, "MARKb")
    between, end = _split(last, "MARKc")
    if first != head or end != tail:
        raise ValueError("messages are written otherwise where more follow")
    # between = after assistant + before user; middle = after user + before assistant; tail = after user + before an answer
    before_user = _common_end(head, between)
    after_assistant = between[:len(between) - len(before_user)]
    same = after_assistant and tail.startswith(after_assistant) and middle.startswith(after_assistant)  # turns end alike
    after_user = after_assistant if same else tail[:len(tail) - len(_common_end(tail, middle))]
    answer = tail[len(after_user):]
    around = {"user": (before_user, after_user), "assistant": (middle[len(after_user):], after_assistant)}
    begin = head[:len(head) - len(before_user)]
    if not system:
        return Pieces(begin, "", around, answer)
    lead, behind = _split(system, "MARKs")
    after_system, _ = _split(behind, "MARKa")
    if not after_system.endswith(before_user):
        raise ValueError("a system message is not a message of its own")
    shared = _common_start(begin, lead)
    around["system"] = (lead[len(shared):], after_system[:len(after_system) - len(before_user)])
    return Pieces(shared, begin[len(shared):], around, answer)


def _split(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise ValueError("a message is left out or repeated")
    before, _, after = text.partition(mark)
    return before, after


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size:]


def _common_start(one: str, other: str) -> str:
    return _common_end(one[::-1], other[::-1])[::-1]


def modelfile(engine: Engine, pieces: Pieces, base_file: str, lora_file: str) -> str:
    """The Modelfile as text."""
    generation = engine.model.generation_config
    parameters: list[tuple[str, Any]] = []
    if getattr(generation, "do_sample", False):
        parameters += [(name, value) for name in ("temperature", "top_p", "top_k") if (value := getattr(generation, name, None)) is not None]
    else:
        parameters.append(("temperature", 0))
    parameters.append(("repeat_penalty", getattr(generation, "repetition_penalty", None) or 1.0))
    if engine.context_length:
        parameters.append(("num_ctx", min(engine.context_length, 8192)))
    parameters += [("stop", json.dumps(engine.token_text(id_), ensure_ascii=False)) for id_ in sorted(engine.end_ids)]
    lines = [VERSIONS, f"FROM ./{base_file}", f"ADAPTER ./{lora_file}", f'TEMPLATE """{pieces.go_template()}"""',
             *(f"PARAMETER {name} {value}" for name, value in parameters)]
    return "\n".join(lines) + "\n"
