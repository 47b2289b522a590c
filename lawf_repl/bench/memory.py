"""Peak memory of a training, measured by a process that does nothing else: `python -m lawf_repl.bench.memory JSON`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from lawf_repl.processes import environment, module

MemoryKind = Literal["paper", "upper", "all", "save", "session"]
STEPS = 3
PROMPTS = 12  # general prompts to hold and to measure on, in place of all: what is kept and done at a time hangs on the limits in bytes
TEXT = "Tell me in one sentence what the capital of Australia is, and which of the larger towns around it people take it for."


def peak_bytes(device: Any) -> int:
    """Of this process so far: of the accelerator's memory where the model is there, else resident memory."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage gives may be the parent's, from before this program was started
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return taken if sys.platform == "darwin" else taken * 1024


def forget_peak(device: Any) -> bool:
    """From here on the peak is that of what follows. False where the system does not offer that."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def steps(kind: MemoryKind, shape: str, device: Any, dtype: Any) -> tuple[int, str]:
    """A few steps on a made-up case; bytes of the weights."""
    from lawf_repl.bench.models import random_model
    from lawf_repl.bench.stepping import made_up_case, our_loop, paper_step
    from lawf_repl.engine.layout import lay_out
    from lawf_repl.engine.memory import weight_bytes

    model = random_model(shape, device, dtype)
    case, weights = made_up_case(model.config.vocab_size), weight_bytes(model)
    if kind == "paper":
        other = random_model(shape, device, dtype)
        step, _ = paper_step(model, case, other)
        for _ in range(STEPS):
            step()
    else:
        lay_out(model)
        solver = our_loop(model, kind, case)[0].solver()
        for _ in range(STEPS):
            solver.step()
    return weights, ""


def session(settings: Any, folder: Path) -> tuple[int, str]:
    """A session on a saved model: an answer, a correction, a training with variations and general prompts; in a process of its own."""
    from dataclasses import replace

    from lawf_repl.engine.base import load_engine
    from lawf_repl.engine.memory import weight_bytes
    from lawf_repl.measure.prompts import load_probes
    from lawf_repl.session import Session

    for name in ("north", "south"):
        lines = [f"What is number {number} of the towns in the {name}?\n" for number in range(PROMPTS)]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    settings = replace(settings, model=str(folder), max_tokens=48, max_steps=STEPS, max_seconds=3600.0, probes=str(folder / "north"),
                       replay_prompts=str(folder / "south"))
    engine = load_engine(settings)
    made = Session(engine, settings, load_probes(engine, settings))
    for _ in made.ask(TEXT):
        pass
    for _ in made.replace(5, " Canberra"):  # asked for when there is an answer to correct
        pass
    made.accept()
    weights, before = weight_bytes(engine.model), peak_bytes(engine.device)
    forgotten = forget_peak(engine.device)
    for _ in made.train():
        pass
    earlier = f"; {before / weights:.2f} times before it, loading included" if forgotten else ""
    return weights, f"{settings.variations} variations and twice {PROMPTS} general prompts{earlier}"


def save_model(shape: str, device: Any, dtype: Any, folder: Path) -> None:
    """A random model as a folder."""
    from lawf_repl.bench.models import random_model, random_tokenizer

    model = random_model(shape, device, dtype)
    model.save_pretrained(folder)
    random_tokenizer(model.config.vocab_size).save_pretrained(folder)


def measured(given: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process finds that does what `given` says: kind, shape, device, dtype and, where it needs one, a folder."""
    done = subprocess.run(module("lawf_repl.bench.memory", json.dumps(given)), capture_output=True, text=True, check=False,
                          env=environment(os.environ))
    if done.returncode:
        raise RuntimeError(f"the process that measures memory ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(given: dict[str, Any]) -> dict[str, Any]:
    """What this process found: peak and weights in bytes, and what a reader has to know."""
    from lawf_repl.config import Settings
    from lawf_repl.engine.base import pick_device, pick_dtype, quiet

    quiet()
    settings = Settings(device=given["device"], dtype=given["dtype"])
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    if given["kind"] == "save":
        save_model(given["shape"], device, dtype, Path(given["folder"]))
        return {}
    weights, note = session(settings, Path(given["folder"])) if given["kind"] == "session" else steps(given["kind"], given["shape"], device, dtype)
    return {"peak": peak_bytes(device), "weights": weights, "note": note}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
