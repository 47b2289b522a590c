"""One export from start to end: reference of the live model, writing beside the place, verification in a fresh process, into place."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from lawf_repl.config import Settings
from lawf_repl.engine.base import DEMO_MODEL, DEMO_NAME, Engine
from lawf_repl.errors import ExportError, PromptError
from lawf_repl.export import commands, merged, ollama, vllm
from lawf_repl.export.card import Base, model_card
from lawf_repl.export.fresh import render
from lawf_repl.export.hub import listing
from lawf_repl.export.identity import Finding, effect, match_base, match_file, shapes
from lawf_repl.export.peft import base_of, write_peft
from lawf_repl.export.place import check_place, placed, working
from lawf_repl.export.served import in_ollama, in_vllm
from lawf_repl.export.source import Source
from lawf_repl.export.trials import FEW, MOST, ROWS, Trial, make_trials, room, write_reference
from lawf_repl.export.verify import CLOSE, CLOSE_HALF, SHARE_HALF, Live, all_hold, release, verify_adapter, verify_merged
from lawf_repl.learn.adapter import Adapter

Format = Literal["peft", "merged", "gguf", "ollama", "vllm"]
FORMATS: tuple[Format, ...] = ("peft", "merged", "gguf", "ollama", "vllm")
# Why a format cannot hold an adapter that leaves the prompt alone.
HOLDS_NONE: dict[Format, str] = {"merged": "merged weights cannot", "gguf": "a GGUF of it cannot", "ollama": "Ollama cannot",
                                 "vllm": "vLLM cannot"}
BASE_FILE, LORA_FILE = "base.gguf", "lora.gguf"
BASE_NAME = "lawf-base"  # that vLLM serves the base under while it is looked at


@dataclass(frozen=True)
class Order:
    """What is to be written where. `base_id` is the hub id of a base that was loaded from a folder."""

    out: Path
    format: Format
    force: bool = False
    base_id: str | None = None


@dataclass(frozen=True)
class Exported:
    """What came of it. Where `written` is false, nothing stands at `out` that did not stand there before."""

    out: Path
    format: Format
    findings: tuple[Finding, ...]
    written: bool
    commands: tuple[str, ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.written and all(finding.ok for finding in self.findings)


class _Failed(Exception):
    """A check did not hold: what was written is thrown away."""


@dataclass
class _Work:
    """What the parts of one export share."""

    engine: Engine
    adapter: Adapter
    source: Source
    order: Order
    base: Base
    live: Live
    config: dict[str, Any]
    notes: list[str]

    @property
    def example(self) -> commands.Example:
        trial = self.live.trials[0]
        return commands.Example(trial.messages, self.engine.template_args, room(len(trial.accepted_ids)), self.engine.has_template)


def export(engine: Engine, adapter: Adapter, source: Source, order: Order, settings: Settings) -> Exported:
    """Write, verify, put in place. The live model is let go of: nothing may be generated with `engine` afterwards.

    Raises ExportError for what cannot be exported at all; a check that does not hold comes back as a finding.
    """
    check_place(order.out, order.force)
    if adapter.reach is not None and order.format != "peft":
        raise ExportError(f"this adapter acts on the completion alone (scope completion, an aLoRA), which {HOLDS_NONE[order.format]}: "
                          "export it as peft, or train with scope text")
    if order.format == "merged":
        merged.refuse_quantized(engine)
    if order.format in ("gguf", "ollama"):
        gguf_writer()
    pieces = ollama.find_pieces(engine) if order.format == "ollama" else None
    base = base_of(engine, order.base_id, settings.revision)
    if order.out.resolve() == Path(place_of(engine)).resolve():
        raise ExportError(f"{order.out} is the base itself, which no export replaces: name another place")
    dead = [name.replace(".default.", ".") for name, weight in adapter.snapshot().items() if not bool(weight.any())]
    with working() as work:
        live = _live(engine, adapter, source, settings, work, whole=order.format in ("gguf", "ollama"))
        if not live.trials:
            raise ExportError(f"{engine.name} gives no answer to compare with: export a session, whose accepted answers are compared")
        config = write_peft(engine, adapter, source, work / "peft", base)
        have = _first_findings(source, engine, live, work / "peft")
        job = _Work(engine, adapter, source, order, base, live, config, [*made_otherwise(engine, live.trials), *_notes(base)])
        printed: list[str] = []
        try:
            if not all(finding.ok for finding in have):
                raise _Failed
            with placed(order.out, order.force) as staging:
                if order.format in ("peft", "vllm"):
                    printed = _peft(job, staging, have, dead)
                elif order.format == "merged":
                    printed = _merged(job, staging, have)
                else:
                    printed = _gguf(job, staging, have, work / "peft", pieces)
        except _Failed:
            return Exported(order.out, order.format, tuple(have), False)
    files = listing(order.out) if order.out.is_dir() else [(order.out.name, order.out.stat().st_size)]
    return Exported(order.out, order.format, tuple(have), True, tuple(printed), tuple(files), tuple(job.notes))


def place_of(engine: Engine) -> str:
    """What from_pretrained takes for the base: a folder, or a hub id."""
    folder = DEMO_MODEL if engine.name == DEMO_NAME else Path(engine.name).expanduser()
    return str(folder) if folder.is_dir() else engine.name


def _live(engine: Engine, adapter: Adapter, source: Source, settings: Settings, work: Path, whole: bool) -> Live:
    """With `whole`, the logits of every answer from first to last, of fewer prompts: the check of GGUF compares all of them."""
    trials = make_trials(engine, adapter, source, FEW if whole else MOST)
    file = write_reference(engine, adapter, trials, work, sum(len(trial.accepted_ids) for trial in trials) * len(trials) if whole else ROWS)
    place = place_of(engine)
    commit = engine.revision or settings.revision
    return Live(tuple(trials), file, tuple(sorted(engine.end_ids)), engine.tokenizer.decode, engine.dtype, str(engine.device), place,
                None if Path(place).is_dir() else commit, settings)


def _first_findings(source: Source, engine: Engine, live: Live, folder: Path) -> list[Finding]:
    """What can be known before anything is loaded again."""
    found = [match_base(source, engine, folder), effect(folder)]
    if source.sha256 is not None and source.adapter is not None:
        found.append(match_file(source))
    given = [trial for trial in live.trials if trial.given]
    if given:
        right = sum(live.same_text(trial.live_ids, trial.accepted_ids) for trial in given)
        found.append(Finding("adapter", right == len(given), f"{right} of {len(given)} accepted answers come out before it is exported"
                             + ("" if right == len(given) else ": train on, with a higher --max-steps, or correct more")))
    return found


def made_otherwise(engine: Engine, trials: Sequence[Trial]) -> list[str]:
    """A note where the chat template makes other prompts of the conversations than those that were accepted: a server would, too."""
    other = 0
    for trial in trials:
        try:
            other += bool(trial.messages) and engine.prompt_ids(trial.messages) != trial.prompt_ids
        except PromptError:
            other += 1
    if not other:
        return []
    return [f"{engine.name}'s chat template makes {other} of {len(trials)} prompts otherwise than they were when their answers were accepted, "
            "and a server will, too: pass the --template-arg that they were made with"]


def _check(have: list[Finding], more: Sequence[Finding]) -> None:
    have += more
    if not all_hold(have):
        raise _Failed


def _check_served(have: list[Finding], found: Finding) -> None:
    """What its own server made of it. One that is not installed leaves the export as it is, and unverified."""
    have.append(found)
    if found.verified and not found.ok:
        raise _Failed


def _peft(job: _Work, staging: Path, have: list[Finding], dead: Sequence[str]) -> list[str]:
    for_vllm, live = job.order.format == "vllm", job.live.dtype
    stored = merged.stored_dtype(_loading(job), job.engine)
    if for_vllm:
        vllm.check_config(job.config)
    write_peft(job.engine, job.adapter, job.source, staging, job.base)
    if for_vllm:
        vllm.check_tensors(shapes(staging))
    release(job.engine)
    served = vllm.served_dtype(live, stored) if for_vllm else stored  # transformers and vLLM take that of the files by themselves
    other = None if served == live or job.live.settings.quantize else served
    instead = "export it as merged with --dtype float32" if for_vllm else f"serve it in {live}"
    found = verify_adapter(job.live, staging, dead, other, instead)
    if other and not for_vllm and len(found) > 1 and not found[-1].ok:  # the commands and the card name the number type that holds
        job.notes.append(f"in {other} {found.pop().detail}")
    _check(have, found)
    if for_vllm:
        trusted, name = job.live.settings.trust_remote_code, vllm.served_name(job.order.out)
        command = vllm.serve(job.live.source, job.live.revision, served, job.config, name, staging, trusted)
        _check_served(have, in_vllm(job.live, [*command, "--served-model-name", BASE_NAME], name, BASE_NAME))
        return vllm.commands(job.order.out, job.base, job.config, served, job.example, trusted)
    return commands.peft(job.order.out, job.base, job.example, job.engine.name == DEMO_NAME, job.live.settings, job.adapter.reach is not None)


def _loading(job: _Work) -> dict[str, Any]:
    """What from_pretrained takes for the base."""
    load: dict[str, Any] = {"pretrained_model_name_or_path": job.live.source, "trust_remote_code": job.live.settings.trust_remote_code}
    return load | ({"revision": job.live.revision} if job.live.revision else {})


def _merged(job: _Work, staging: Path, have: list[Finding]) -> list[str]:
    settings, load = job.live.settings, _loading(job)
    dtype = settings.dtype if settings.dtype != "auto" else merged.stored_dtype(load, job.engine)
    arguments = job.engine.template_args
    conversations = [*(list(known.messages) for known in job.source.known[:16]), [{"role": "user", "content": "Hello, 你好 1234!"}]]
    expected = [render(job.engine.tokenizer.hub, messages, arguments) for messages in conversations]
    merged.write_merged(job.engine, job.adapter, job.source, staging, job.base, dtype, load)
    release(job.engine)
    _check(have, verify_merged(job.live, staging, dtype, conversations, expected, arguments))
    return commands.merged(job.order.out, dtype, job.example, settings)


def gguf_writer() -> Any:
    """The module that writes and checks GGUF; late, because its library is an extra. Raises ExportError without it."""
    try:
        return importlib.import_module("lawf_repl.export.gguf")
    except ModuleNotFoundError as error:
        raise ExportError(f"writing GGUF needs {error.name}: pip install 'lawf-repl[gguf]'") from error


def _gguf(job: _Work, staging: Path, have: list[Finding], folder: Path, pieces: ollama.Pieces | None) -> list[str]:
    """LoRA and base as GGUF; only the LoRA where OUT is a file NAME.gguf: the base is then written for the check alone."""
    writer = gguf_writer()
    engine, out = job.engine, job.order.out
    single = out.suffix == ".gguf" and pieces is None
    job.adapter.remove()
    if not single:
        staging.mkdir()
    lora = staging if single else staging / LORA_FILE
    base = folder.parent / BASE_FILE if single else staging / BASE_FILE
    writer.write_lora(engine.model, folder, lora)
    writer.write_base(engine.model, engine.tokenizer.hub, base)
    if not single:
        about = (folder / "lawf.json").read_text(encoding="utf-8")
        (staging / "lawf.json").write_text(about, encoding="utf-8")
        card = model_card(job.source, job.base, job.config, json.loads(about)["versions"], "gguf")
        (staging / "README.md").write_text(card, encoding="utf-8")
    if pieces is not None:
        (staging / "Modelfile").write_text(ollama.modelfile(engine, pieces, BASE_FILE, LORA_FILE), encoding="utf-8")
    release(engine)
    checks = [_in_llama(writer, job.live, number, base, lora) for number in range(len(job.live.trials))]
    findings = [Finding("llama.cpp", bool(check.passed), str(check.reason)) for check in checks]
    if any(check.verified and not check.passed for check in checks):
        _check(have, findings)
    have += [finding for number, finding in enumerate(findings) if finding not in findings[:number]]  # unverified is not wrong: it is kept, and said
    if pieces is not None:
        _check_served(have, in_ollama(job.live, staging))
        return commands.ollama(out, vllm.served_name(out).lower(), job.example)
    return commands.gguf(None if single else out / BASE_FILE, out if single else out / LORA_FILE, job.example)


def _in_llama(writer: Any, live: Live, number: int, base: Path, lora: Path) -> Any:
    """One prompt in llama.cpp, its logits next to those of the live model: a GgufCheck of passed, reason, verified."""
    with safe_open(live.file.with_name("logits.safetensors"), framework="pt") as reference:
        with_it, without = (reference.get_tensor(f"{which}.{number}") for which in ("with", "without"))
    trial = live.trials[number]
    # llama.cpp computes in float32: next to a live model that does not, logits are as far apart as its rounding takes them
    near = CLOSE if live.dtype == "float32" else max(CLOSE_HALF, SHARE_HALF * float((with_it - without).abs().max()))
    return writer.verify_gguf(base, lora, list(trial.prompt_ids), list(trial.accepted_ids), list(trial.base_ids),
                              with_logits=with_it, without_logits=without, tolerance=near)


def _notes(base: Base) -> list[str]:
    return [f"the base is the local folder {base.folder}: with --base-id OWNER/NAME the export names what others can load"] if base.folder else []


def exported_json(exported: Exported, pushed: dict[str, Any] | None) -> dict[str, Any]:
    """The object of schema lawf.export/1."""
    return {"schema": "lawf.export/1", "format": exported.format, "out": str(exported.out), "ok": exported.ok, "written": exported.written,
            "checks": [{"what": one.what, "ok": one.ok, "verified": one.verified, "detail": one.detail} for one in exported.findings],
            "files": [{"name": name, "bytes": size} for name, size in exported.files], "commands": list(exported.commands),
            "notes": list(exported.notes), "push": pushed}
