"""What to type to serve an export: commands to be copied as they are, which ask what was accepted, in the way that it was verified."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawf_repl.config import Settings
from lawf_repl.export.card import Base
from lawf_repl.export.shell import ANY, LONGEST, asked, quote
from lawf_repl.records import Message


@dataclass(frozen=True)
class Example:
    """The conversation that the commands ask, and how its prompt is made of it."""

    messages: tuple[Message, ...] = ()   # none: a place to fill in
    arguments: dict[str, Any] | None = None  # of the chat template
    room: int = 64                       # tokens that the answer may have
    template: bool = True                # False: the model has none, its prompt is the plain text

    @property
    def talk(self) -> list[Message]:
        """The whole conversation, for what takes one; a text that is too long for a command becomes a place to fill in."""
        short = self.messages and sum(len(message["content"]) for message in self.messages) <= LONGEST
        return list(self.messages) if short else [{"role": "user", "content": ANY}]

    @property
    def asked(self) -> tuple[str | None, str]:
        """System message and question, for what takes no more than these."""
        return asked(self.messages)


def loading(settings: Settings) -> str:
    """Flags of lawf and keyword arguments are the same: how the base was loaded where it was not by default."""
    flags = [f" --{name.replace('_', '-')} {quote(str(value))}" for name in ("dtype", "quantize", "device_map")
             if (value := getattr(settings, name)) not in (None, "auto")]
    return "".join(flags) + (" --trust-remote-code" if settings.trust_remote_code else "")


def answer(example: Example, what: str) -> str:
    """`lawf answer`, with the flags `what` that name model and adapter."""
    system, question = example.asked
    more = "".join(f" --template-arg {quote(f'{key}={value if isinstance(value, str) else json.dumps(value)}')}"
                   for key, value in (example.arguments or {}).items())
    return f"lawf answer{what}{more}" + (f" --system {quote(system)}" if system else "") + f" {quote(question)}"


def peft(out: Path, base: Base, example: Example, demo: bool, settings: Settings, activated: bool = False) -> list[str]:
    """lawf, peft's PeftModel.from_pretrained and transformers' load_adapter, each with an answer.

    The last knows nothing of adapters that are `activated` by a mark in the text.
    """
    model = "" if demo else f" --model {quote(base.name)}" + (f" --revision {quote(base.revision)}" if base.revision else "")
    loaded = f"AutoModelForCausalLM.from_pretrained({pretrained(base, settings)})"
    place = literal(str(out.absolute()))
    return [answer(example, f"{model}{loading(settings)} --adapter {quote(str(out))}"),
            python(example, f"from peft import PeftModel; model = PeftModel.from_pretrained({loaded}, {place})", pretrained(base, settings, False)),
            *([] if activated else [python(example, f"model = {loaded}; model.load_adapter({place})", pretrained(base, settings, False))])]


def merged(out: Path, dtype: str, example: Example, settings: Settings) -> list[str]:
    """The same for a whole model, and vLLM, which would take float32 for half precision by itself."""
    trust = ", trust_remote_code=True" if settings.trust_remote_code else ""
    place = literal(str(out.absolute())) + trust
    return [answer(example, f" --model {quote(str(out))}" + (" --trust-remote-code" if trust else "")),
            f"vllm serve {quote(str(out.absolute()))} --dtype {dtype}" + (" --trust-remote-code" if trust else ""),
            python(example, f"model = AutoModelForCausalLM.from_pretrained({place}, dtype={literal(dtype)})", place)]


def gguf(base: Path | None, lora: Path, example: Example) -> list[str]:
    """llama.cpp's two programs, with a float32 cache: its usual one of float16 can turn a greedy answer. `base` None is a file to name."""
    system, question = example.asked
    files = f"-m {quote(str(base)) if base else 'BASE.gguf'} --lora {quote(str(lora))} -ctk f32 -ctv f32"
    if not example.template:
        return [f"llama-cli {files} -no-cnv --temp 0 -p {quote(question)}", f"llama-server {files}"]
    files += " --jinja" + (f" --chat-template-kwargs {quote(json.dumps(example.arguments))}" if example.arguments else "")
    more = f" -sys {quote(system)}" if system else ""
    return [f"llama-cli {files} --single-turn --temp 0{more} -p {quote(question)}", f"llama-server {files}"]


def ollama(out: Path, name: str, example: Example) -> list[str]:
    """Ollama's own two; `ollama run` takes a question only, so that a longer conversation is sent to its server."""
    create = f"cd {quote(str(out.absolute()))} && ollama create {quote(name)} -f Modelfile"
    if len(example.talk) == 1:
        return [create, f"ollama run {quote(name)} {quote(example.talk[0]['content'])}"]
    body = {"model": name, "messages": example.talk, "stream": False}
    return [create, f"curl http://localhost:11434/api/chat -d {quote(json.dumps(body, ensure_ascii=False))}"]


def python(example: Example, model: str, tokenizer: str) -> str:
    """`python -c` that loads and prints the answer, greedy; `tokenizer` is what from_pretrained takes."""
    more = f", **{example.arguments!r}" if example.arguments else ""
    prompt = (f"tokenizer.apply_chat_template({json.dumps(example.talk, ensure_ascii=False)}, add_generation_prompt=True, "
              f'return_tensors="pt", return_dict=True{more})' if example.template
              else f'tokenizer({literal(example.talk[0]["content"])}, return_tensors="pt")')
    return "python -c " + quote(
        f"from transformers import AutoModelForCausalLM, AutoTokenizer; {model}; tokenizer = AutoTokenizer.from_pretrained({tokenizer}); "
        f"prompt = {prompt}; print(tokenizer.decode(model.generate(**prompt, do_sample=False, max_new_tokens={example.room})[0]))")


def pretrained(base: Base, settings: Settings, model: bool = True) -> str:
    """What from_pretrained takes for the base, as Python: transformers' own choice of number type is the files', not what was verified."""
    more = {"revision": base.revision, "dtype": base.dtype if model else None}
    words = [literal(base.name), *(f"{name}={literal(value)}" for name, value in more.items() if value)]
    return ", ".join([*words, *(["trust_remote_code=True"] if settings.trust_remote_code else [])])


def literal(text: str) -> str:
    """A text as Python."""
    return json.dumps(text, ensure_ascii=False)

