"""How to load the adapter of a session: commands to be copied as they stand, in the folder of the session."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lawf_repl.beats import Kept
from lawf_repl.chronicle import Chronicle
from lawf_repl.digest import model_name
from lawf_repl.export.shell import ANY, asked, quote
from lawf_repl.records import Message
from lawf_repl.report.markup import Html, own, tag, text

DEMO = "lawf-demo"  # the model inside the package, which lawf loads where none is named
LOCAL = ("/", ".", "~", "\\")


def loading(chronicle: Chronicle, messages: tuple[Message, ...]) -> Html:
    """The section about the adapter that was saved last."""
    kept = chronicle.adapter
    if kept is None:
        return tag("p", "No adapter was saved in this session.", class_="quiet")
    model, revision = model_name(chronicle.header), chronicle.header["model"].get("revision")
    revision = revision if isinstance(revision, str) and revision and model != DEMO else None
    folder = folder_name(chronicle, kept)
    there = None if kept.folder else tag("p", "When this page was made, no folder with this content was there.", class_="bad")
    digest = tag("code", kept.sha256[:16] + "…", class_="hash")
    where = tag("p", "Adapter ", own(folder), ", a standard peft directory; sha256 of its content ", digest,
                ". In the folder of ", own(chronicle.path.name), ":")
    blocks = [commands(chronicle.path, folder, model, revision, messages)]
    if model != DEMO:
        blocks.append(python(folder, model, revision))
    return tag("div", there, where, *(tag("pre", tag("code", text(block))) for block in blocks),
               tag("p", "Answers were accepted in greedy generation; sampling may give others.", class_="quiet small"))


def folder_name(chronicle: Chronicle, kept: Kept) -> str:
    """The adapter's folder as it is called beside the session."""
    if kept.folder and Path(kept.folder).parent == Path(os.path.realpath(chronicle.path)).parent:
        return Path(kept.folder).name
    return kept.path


def commands(session: Path, folder: str, model: str, revision: str | None, messages: tuple[Message, ...]) -> str:
    """With lawf itself, and for other software."""
    base = "" if model == DEMO else f" --model {quote(model)}" + (f" --revision {quote(revision)}" if revision else "")
    system, prompt = asked(messages)
    given = f" --system {quote(system)}" if system else ""
    return "\n".join([f"lawf answer {quote(prompt)}{base} --adapter {quote(folder)}{given}" + ("" if prompt != ANY else "  # your own prompt"),
                      f"lawf replay {quote(session.name)}" + (f" --model {quote(model)}" if model.startswith(LOCAL) else ""),
                      f"lawf export {quote(session.name)} fix --format merged  # or peft, gguf, ollama, vllm"])


def python(folder: str, model: str, revision: str | None) -> str:
    """With peft and transformers."""
    more = f", revision={json.dumps(revision)}" if revision else ""
    return (f"from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(model)}{more})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(model)}{more})\n"
            f"model = PeftModel.from_pretrained(base, {json.dumps(folder)})")
