"""trl's SFTTrainer on one corrected answer, stopped where it has learned it: the peer of a whole training.

Its defaults, except what makes it slower or is of no use here: one example a batch, no half precision on a CPU, no gradient
checkpointing, no files. The LoRA is the one that the library's documentation shows, on every linear layer.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from lawf_repl.engine.base import Engine
from lawf_repl.errors import UsageError
from lawf_repl.measure.probes import Reference
from lawf_repl.records import Case

MOST_STEPS = 2000


@dataclass(frozen=True)
class Learned:
    """One training to acquisition."""

    acquired: bool
    steps: int
    built_s: float    # making the trainer: model, adapter, data
    trained_s: float  # without looking whether it has learned it
    drift_nats: float


def trl_version() -> str | None:
    """None where trl is not installed."""
    try:
        return version("trl")
    except PackageNotFoundError:
        return None


def train_trl(engine: Engine, case: Case, reference: Reference, target_p: float, learning_rate: float | None, seed: int = 0) -> Learned:
    """Train until every anchor has `target_p` and greedy generation gives the accepted answer; the model is the base again afterwards."""
    try:
        import datasets
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise UsageError("trl is not installed: pip install 'lawf-repl[bench]'") from error
    datasets.disable_progress_bars()
    model = engine.model
    ids = torch.tensor([[*case.prompt_ids, *case.completion_ids]], device=engine.device)
    accepted = torch.tensor(case.completion_ids, device=engine.device)
    anchors = [anchor.position for anchor in case.anchors]

    class Acquired(TrainerCallback):
        """Looks after every step."""

        seconds, found = 0.0, False

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
            began = time.perf_counter()
            with torch.no_grad():
                model.eval()
                logprobs = model(input_ids=ids, use_cache=False).logits[0, len(case.prompt_ids) - 1:-1].log_softmax(-1)  # (N, V)
                model.train()
            p = logprobs[anchors, accepted[anchors]].exp()
            self.found = bool((p >= target_p).all()) and bool((logprobs.argmax(-1) == accepted).all())
            control.should_training_stop = control.should_training_stop or self.found
            self.seconds += time.perf_counter() - began
            return control

    acquired = Acquired()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        rates = {} if learning_rate is None else {"learning_rate": learning_rate}
        config = SFTConfig(output_dir=folder, per_device_train_batch_size=1, max_steps=MOST_STEPS, save_strategy="no", report_to="none",
                           logging_strategy="no", disable_tqdm=True, bf16=False, gradient_checkpointing=False, seed=seed,
                           use_cpu=engine.device.type == "cpu", **rates)
        rows = [{"input_ids": ids[0].tolist(), "completion_mask": [0] * len(case.prompt_ids) + [1] * len(case.completion_ids)}]
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
        trainer = SFTTrainer(model=model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=engine.tokenizer.hub,
                             peft_config=lora, callbacks=[acquired])
        built = time.perf_counter()
        try:
            trainer.train()
            done = time.perf_counter()
            model.eval()
            drift = reference.measure().drift_nats
        finally:
            trainer.model.unload()
            model.eval()
            for parameter in model.parameters():
                parameter.requires_grad_(False)
    return Learned(acquired.found, trainer.state.global_step, built - began, done - built - acquired.seconds, drift)
