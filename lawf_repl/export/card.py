"""The model card of an adapter: what it corrects, how it was measured, how to load it. Texts of prompts and answers are only ever quoted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawf_repl.export.source import Known, Source
from lawf_repl.records import Check, Scorecard


@dataclass(frozen=True)
class Base:
    """A base model as an export names it."""

    name: str                # what from_pretrained takes: a hub id, or the folder
    revision: str | None
    label: str               # what the card calls it
    folder: Path | None      # where it is only a folder: nobody else can load it by its name
    dtype: str | None = None  # the number type that the adapter was verified in


LIBRARY = {"peft": ("peft", ("lora", "peft", "transformers", "lawf")), "merged": ("transformers", ("transformers", "lawf")),
           "gguf": ("gguf", ("lora", "gguf", "llama.cpp", "lawf"))}


def model_card(source: Source, base: Base, config: dict[str, Any] | None, versions: dict[str, str], kind: str = "peft") -> str:
    """README.md as text: of an adapter with this adapter_config, or of a merged model where `config` is None; `kind` is one of LIBRARY."""
    count = len(source.known)
    what = f"{_plain(base.label)} with a LoRA merged in" if config is None else f"A LoRA for {_plain(base.label)}"
    parts = [front_matter(base, kind), f"# {what} that corrects {count or 'some'} answer{'' if count == 1 else 's'}\n",
             "Made with lawf (Learning Anchors without Forgetting): a few tokens were corrected, everything else is held to what the base says.\n"]
    for number, known in enumerate(source.known, 1):
        parts.append(_case(number, known))
    parts += [_scorecard(source.scorecard, count), LOADING[kind](base), _making(source, base, config, versions)]
    return "\n".join(parts)


def front_matter(base: Base, kind: str) -> str:
    """The YAML block that hubs read."""
    library, tags = LIBRARY[kind]
    return "\n".join(["---", f"base_model: {json.dumps(base.label)}", f"library_name: {library}", "pipeline_tag: text-generation", "tags:",
                      *(f"- {tag}" for tag in tags), "---\n"])


def fenced(text: str, language: str = "text") -> str:
    """Text as a code block that it cannot end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{_visible(text)}{'' if text.endswith(chr(10)) else chr(10)}{fence}\n"


def _case(number: int, known: Known) -> str:
    case = known.case
    lines = [f"## Answer {number}\n", *([f"{_plain(message['role'])}:\n\n{fenced(message['content'])}" for message in known.messages]),
             f"accepted answer:\n\n{fenced(case.accepted)}",
             "| position | the base says | wanted | p in the base | confidence |", "|---|---|---|---|---|"]
    lines += [f"| {a.position} | {_cell(a.rejected)} | {_cell(a.chosen)} | {a.p_ref:.2g} | {a.confidence:g} |" for a in case.anchors]
    return "\n".join(lines) + "\n"


def _scorecard(card: Scorecard | None, count: int) -> str:
    if card is None:
        return "## Scorecard\n\nNot measured.\n"
    right = None if card.reliability is None else f"{round(card.reliability * max(count, 1))} of {max(count, 1)}"
    probes = card.probes
    probed = f"{probes.n} prompt{'' if probes.n == 1 else 's'}" if probes else ""
    rows = [("reliability: corrected prompts that give the accepted answer", right),
            ("generality: paraphrases that do", _share(card.paraphrases)), ("locality: neighbours answered as before", _share(card.neighbours)),
            ("drift: KL per token in nats on unrelated prompts", f"{probes.drift_nats:.2g} ({probed})" if probes else None),
            ("flips: unrelated prompts answered otherwise", f"{probes.flips:.1%} ({probed})" if probes else None)]
    lines = [f"| {name} | {value or 'not measured'} |" for name, value in rows]
    return "\n".join(["## Scorecard\n", "| check | result |", "|---|---|", *lines]) + "\n"


def _share(checks: Sequence[Check]) -> str | None:
    return f"{sum(check.ok for check in checks)} of {len(checks)}" if checks else None


def _loading(base: Base) -> str:
    more = f", revision={json.dumps(base.revision)}" if base.revision else ""
    dtype = f", dtype={json.dumps(base.dtype)}" if base.dtype else ""
    code = (f"from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base.name)}{more}{dtype})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(base.name)}{more})\n"
            f"model = PeftModel.from_pretrained(base, \"THIS_FOLDER\")\n")
    where = f"\nThe base is the folder `{_plain(base.label)}` of the machine that this was made on.\n" if base.folder else ""
    return f"## How to load it\n\n{fenced(code, 'python')}{where}\nAnswers were accepted in greedy generation; sampling may give others.\n"


def _loading_merged(base: Base) -> str:
    code = ("from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            "model = AutoModelForCausalLM.from_pretrained(\"THIS_FOLDER\")\n"
            "tokenizer = AutoTokenizer.from_pretrained(\"THIS_FOLDER\")\n")
    return f"## How to load it\n\n{fenced(code, 'python')}\nAnswers were accepted in greedy generation; sampling may give others.\n"


def _loading_gguf(base: Base) -> str:
    command = "llama-cli -m BASE.gguf --lora lora.gguf --jinja --single-turn --temp 0 -p 'YOUR PROMPT'\n"
    return (f"## How to load it\n\n{fenced(command, 'sh')}\nBASE.gguf is {_plain(base.label)} in float32, which the adapter was verified on; a "
            "quantized base moves every answer a little. Answers were accepted in greedy generation; sampling may give others.\n")


LOADING = {"peft": _loading, "merged": _loading_merged, "gguf": _loading_gguf}


def _making(source: Source, base: Base, config: dict[str, Any] | None, versions: dict[str, str]) -> str:
    recipe = "".join(f"- {_plain(name)}: {_plain(str(value))}\n" for name, value in (source.recipe or {}).items())
    made = ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in versions.items())
    how = f"rank {config['r']}, alpha {config['lora_alpha']}, on {_targets(config)}" if config else "a LoRA, merged into the weights"
    return (f"## How it was made\n\n- {how}\n- base: {_plain(base.label)}, revision {_plain(base.revision or 'not known')}\n{recipe}"
            + (f"- {made}\n\n`lawf.json` has all of it, with hashes of the base and token ids.\n" if config else ""))


def _targets(config: dict[str, Any]) -> str:
    targets = config["target_modules"]
    if not isinstance(targets, list):
        return _plain(str(targets))
    kinds = sorted({target.rpartition(".")[2] for target in targets})
    return f"{len(targets)} linear layers ({_plain(', '.join(kinds))})"


def _visible(text: str) -> str:
    """Line feeds and tabs stay, other characters that a terminal or a page would obey become escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def _plain(text: str) -> str:
    """A name as it may stand in running Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", "".join(c if c.isprintable() else "?" for c in text)).replace("\\_", "_")


def _cell(text: str) -> str:
    """A token in a table, with its spaces seen."""
    quoted = json.dumps(_visible(text), ensure_ascii=False).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", quoted)), default=0))
    return f"{ticks}{quoted}{ticks}"
