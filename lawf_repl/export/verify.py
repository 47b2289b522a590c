"""Every export is loaded in a fresh process by what will serve it, and has to give what the live model gives there.

Same text is no proof (an adapter with wrong numbers can give the right text), so logits are compared as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.errors import ExportError
from lawf_repl.export.identity import PREFIX, Finding
from lawf_repl.export.trials import Trial
from lawf_repl.processes import environment, module

CLOSE = 1e-3      # logits of the same model by the same library, float32
CLOSE_HALF = 0.1  # the same in half precision, or
SHARE_HALF = 0.1  # that much of what the adapter moves: transformers rounds a LoRA to the number type of its base, peft does not
STRONGER = "train with a stronger margin (--target-p 0.99, or goal_p = 0.99999999 in the config file)"
SHARE = 0.5       # of what the adapter moves: rounding that is larger has eaten it
BY = {"peft": "PeftModel.from_pretrained", "transformers": "load_adapter"}


@dataclass(frozen=True)
class Live:
    """What is needed of the live model once it is no longer there: its answers, and how to load its base again."""

    trials: tuple[Trial, ...]
    file: Path               # trials.json, with logits.safetensors beside it
    end_ids: tuple[int, ...]
    decode: Any              # ids to text
    dtype: str
    device: str
    source: str              # what from_pretrained takes for the base
    revision: str | None
    settings: Settings

    def same_text(self, one: Sequence[int], other: Sequence[int]) -> bool:
        """Whether two answers read the same, and both ended or neither did."""
        ends = [bool(ids) and ids[-1] in self.end_ids for ids in (one, other)]
        if ends[0] != ends[1]:
            return False
        texts = [self.decode(list(ids)[:-1] if end else list(ids)) for ids, end in zip((one, other), ends, strict=True)]
        return list(one) == list(other) or texts[0] == texts[1]


def verify_adapter(live: Live, folder: Path, dead: Sequence[str] = (), served: str | None = None, instead: str = "") -> list[Finding]:
    """A peft folder: by peft's PeftModel.from_pretrained and transformers' load_adapter. Tensors named in `dead` are zero in the live adapter too.

    `served` is another number type that a server takes base and LoRA in: the last finding is then what comes out in that, and
    `instead` what to do where the accepted answers do not.
    """
    report = in_fresh_process(live, "adapter", folder, served=served)
    if isinstance(report, Finding):
        return [report]
    zero = [name for name in report["zero"] if name not in dead]
    unloaded = sorted({name for by in BY if by in report for kind in ("missing", "odd", "changed") for name in report[by][kind]})
    bad = unloaded or zero or (["modules_to_save"] if report["modules_to_save"] else [])
    what = "not loaded as written" if unloaded else "zero" if zero else "beside the LoRA"
    found = [Finding("tensors", not bad, f"{len(bad)} {what}, such as {bad[0].removeprefix(PREFIX)}" if bad else
                     f"{report['tensors']} LoRA matrices on linear layers: none missing, unexpected or all zero")]
    for by, how in BY.items():
        if by not in report:
            continue  # it knows nothing of adapters that act on completions alone
        found.append(_serves(live, f"{by} {report['versions'][by]}", how, report[by], report["base"]))
    return [*found, _served(live, served, instead, report)] if served else found


def _served(live: Live, dtype: str, instead: str, report: dict[str, Any]) -> Finding:
    """Whether the accepted answers come out where a server computes in another number type than the live model.

    Of answers that nobody accepted only the logits count: along a long one, rounding turns some choice of any model.
    """
    seen, n = report["served"], len(live.trials)
    same = [live.same_text(answer, trial.accepted_ids) for trial, answer in zip(live.trials, seen["answers"], strict=True)]
    right = sum(same)
    accepted = all(one or not trial.given for one, trial in zip(same, live.trials, strict=True))
    ok = accepted and seen["distance"] <= max(SHARE * seen["move"], CLOSE) and not seen["wrong"]
    how = BY["transformers" if "transformers" in report else "peft"]
    line = (f"{how}: {right} of {n} {_kind(live)}, logits within {seen['distance']:.1e} of the {live.dtype} ones "
            f"(the adapter itself moves them by {seen['move']:.1e})")
    if not ok:
        line += f"; computing in {dtype} undoes the fix: {instead}, or {STRONGER}"
    return Finding(f"transformers {report['versions']['transformers']}, computed in {dtype}", ok, line)


def _serves(live: Live, name: str, how: str, with_it: dict[str, Any], base: dict[str, Any]) -> Finding:
    """Whether one library gives the accepted answers with the adapter and the base's without it."""
    close = CLOSE if live.dtype == "float32" else CLOSE_HALF
    near = close if live.dtype == "float32" else max(close, SHARE_HALF * with_it["move"])
    right = sum(live.same_text(answer, trial.accepted_ids) for trial, answer in zip(live.trials, with_it["answers"], strict=True))
    before = sum(live.same_text(answer[:len(trial.base_ids)], trial.base_ids) for trial, answer in zip(live.trials, base["answers"], strict=True))
    off = max(with_it["off"]["distance"], base["distance"])
    n, wrong = len(live.trials), with_it["wrong"] or with_it["off"]["wrong"] or base["wrong"]
    effect = with_it["move"] > 0
    ok = right == n and before == n and with_it["distance"] <= near and off <= close and not wrong and effect
    line = (f"{how}: {right} of {n} {_kind(live)}, {before} of {n} base answers without it, "
            f"logits within {with_it['distance']:.1e} (without it {off:.1e})")
    if wrong:
        line += "; some logits are not finite"
    if not effect:
        line += "; the adapter has no effect"
    return Finding(name, ok, line)


def verify_merged(live: Live, folder: Path, dtype: str, messages: Sequence[Sequence[dict[str, str]]],
                  expected_prompts: Sequence[Sequence[int] | None], arguments: dict[str, Any]) -> list[Finding]:
    """A merged model in its own number type and in the live one's; `expected_prompts` are the live tokenizer's ids of `messages`."""
    dtypes = list(dict.fromkeys([live.dtype, dtype]))
    report = in_fresh_process(live, "merged", folder, dtypes=dtypes, messages=[list(some) for some in messages], template_args=arguments)
    if isinstance(report, Finding):
        return [report]
    found = [Finding("tokenizer", report["prompts"] == [list(ids) if ids is not None else None for ids in expected_prompts],
                     f"tokenizer and chat template give the same ids for {len(expected_prompts)} conversation"
                     f"{'' if len(expected_prompts) == 1 else 's'}"
                     if report["prompts"] == [list(ids) if ids is not None else None for ids in expected_prompts]
                     else "tokenizer or chat template of the export give other ids than the base's")]
    for computed in dtypes:
        found.append(_merged(live, computed, dtype, report["runs"][computed], report["versions"]["transformers"]))
    return found


def _merged(live: Live, computed: str, stored: str, seen: dict[str, Any], version: str) -> Finding:
    right = sum(live.same_text(answer, trial.accepted_ids) for trial, answer in zip(live.trials, seen["answers"], strict=True))
    exact = computed == live.dtype == "float32" == stored
    limit = CLOSE if exact else max(SHARE * seen["move"], CLOSE)
    whole = not seen["missing"] and not seen["odd"]
    close = seen["distance"] <= limit and not seen["wrong"]
    n = len(live.trials)
    line = f"AutoModelForCausalLM: {right} of {n} {_kind(live)}, logits within {seen['distance']:.1e} of base plus adapter"
    if not exact:
        line += f" (the adapter itself moves them by {seen['move']:.1e})"
    if not whole:
        line += f"; {len(seen['missing'])} tensors are missing, {len(seen['odd'])} are not the model's"
    elif (right < n or not close) and stored != "float32":
        line += f"; rounding to {stored} undoes the fix: export with --dtype float32, or {STRONGER}"
    elif right < n and computed != "float32":
        line += f"; the weights are right, but computing in {computed} undoes the fix: serve it in float32, or train with a stronger margin"
    return Finding(f"transformers {version}, weights {stored}, computed in {computed}", right == n and close and whole, line)


def _kind(live: Live) -> str:
    given = sum(trial.given for trial in live.trials)
    if given == len(live.trials):
        return "accepted answers"
    return f"answers ({given} accepted, the others the live adapter's)" if given else "answers of the live adapter (no hard correction is known)"


def in_fresh_process(live: Live, kind: str, folder: Path, **more: Any) -> dict[str, Any] | Finding:
    """fresh.py's report on `folder`; a Finding that says why where there is none."""
    settings = live.settings
    job = {"kind": kind, "base": live.source, "revision": live.revision, "folder": str(folder.absolute()), "trials": str(live.file),
           "dtype": live.dtype, "device": live.device, "end_ids": list(live.end_ids), "trust_remote_code": settings.trust_remote_code,
           "quantize": settings.quantize, "device_map": settings.device_map, **more}
    with tempfile.TemporaryDirectory(prefix="lawf-verify-") as work:
        path = Path(work) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        done = start(path, {"HF_HUB_OFFLINE": "1"} if settings.offline else {})
    if done.returncode == 0:
        try:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        except (ValueError, IndexError):
            pass
    if done.returncode < 0:
        said = f"it was ended by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")
    else:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1][:300] if lines else f"exit code {done.returncode}"
    return Finding("fresh process", False, f"the export could not be loaded there: {said}")


def start(job: Path, more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The fresh process, to its end. Files of the user's folder do not stand for modules there: one may be called peft.py."""
    return subprocess.run(module("lawf_repl.export.fresh", str(job)), capture_output=True, text=True, encoding="utf-8", errors="replace",
                          check=False, env=environment(os.environ | more))


def release(engine: Engine) -> None:
    """Let go of the live model's weights: the fresh process needs their place."""
    import gc

    import torch

    if getattr(engine.model, "hf_device_map", None) or getattr(engine.model, "is_quantized", False):
        return  # spread by accelerate or packed by bitsandbytes, which will not have it moved
    engine.model.to("meta")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def all_hold(findings: Sequence[Finding]) -> bool:
    """Whether an export may be called good."""
    if not findings:
        raise ExportError("nothing was verified")
    return all(finding.ok for finding in findings)
