"""The fresh process: loads an export as its user will, with transformers and peft alone, and reports what came out.

Run by verify.py with the path of a job (JSON); prints one JSON object. Nothing of lawf that wrote the export is used to judge it.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Report = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Do the job named on the command line."""
    job: Job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    warnings.simplefilter("ignore")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    report = check_adapter(job) if job["kind"] == "adapter" else check_merged(job)
    print(json.dumps(report))
    return 0


def check_adapter(job: Job) -> Report:
    """The adapter folder by peft, and by transformers' own load_adapter, on one loaded base."""
    import peft
    import transformers
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    folder = job["folder"]
    file = load_file(Path(folder) / "adapter_model.safetensors")
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    base = load(job, job["base"], revision=job["revision"])
    begin(base, job)
    zero = sorted(name for name, weight in file.items() if not bool(weight.any()))
    out: Report = {"versions": {"peft": peft.__version__, "transformers": transformers.__version__}, "tensors": len(file), "zero": zero,
                   "modules_to_save": config.get("modules_to_save"), "base": run(base, job, "without")}

    activated = bool(config.get("alora_invocation_tokens"))  # peft's own forward alone looks where it begins to act
    model = PeftModel.from_pretrained(base, folder)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    out["peft"] = run(model if activated else base, job, "with") | tensors_differ(file, state)
    with model.disable_adapter():
        out["peft"]["off"] = run(base, job, "without", generate=False)
    base = model.unload()
    del model

    if activated:
        if job.get("served"):
            del base
            half = load(job | {"dtype": job["served"]}, job["base"], revision=job["revision"])
            begin(half, job)
            out["served"] = run(PeftModel.from_pretrained(half, folder), job, "with")
        return out
    base.load_adapter(folder)
    loaded = {f"base_model.model.{name.replace('.default.', '.')}": weight for name, weight in base.named_parameters() if "lora_" in name}
    out["transformers"] = run(base, job, "with") | tensors_differ(file, loaded)
    base.disable_adapters()
    out["transformers"]["off"] = run(base, job, "without", generate=False)
    if job.get("served"):
        del base
        half = load(job | {"dtype": job["served"]}, job["base"], revision=job["revision"])
        begin(half, job)
        half.load_adapter(folder)  # rounds the LoRA to the base's number type, as vLLM does
        out["served"] = run(half, job, "with")
    return out


def check_merged(job: Job) -> Report:
    """A merged model with its tokenizer, in each of the number types asked for."""
    import transformers
    from transformers import AutoTokenizer

    out: Report = {"versions": {"transformers": transformers.__version__}, "runs": {}}
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=job["trust_remote_code"])
    out["prompts"] = [render(tokenizer, messages, job["template_args"]) for messages in job["messages"]]
    for dtype in job["dtypes"]:
        model, info = load(job | {"dtype": dtype}, job["folder"], output_loading_info=True)
        begin(model, job)
        out["runs"][dtype] = run(model, job, "with") | {"missing": sorted(info["missing_keys"]), "odd": sorted(info["unexpected_keys"])}
        out["dtype"] = str(getattr(model.config, "dtype", "")).removeprefix("torch.")
        del model
    return out


def load(job: Job, source: str, **more: Any) -> Any:
    """A causal language model on the job's device and in its number type, as from_pretrained gives it."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = job["device"].split(":")[0]
    options: dict[str, Any] = {"dtype": getattr(torch, job["dtype"]), "trust_remote_code": job["trust_remote_code"], **more}
    if job.get("quantize"):
        options["quantization_config"] = BitsAndBytesConfig(**{f"load_in_{job['quantize']}": True})
    if job.get("device_map") or job.get("quantize"):
        options["device_map"] = job.get("device_map") or {"": kind}
    options = {name: value for name, value in options.items() if value is not None}
    loaded = AutoModelForCausalLM.from_pretrained(source, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if "device_map" not in options:
        model.to(kind)
    model.eval()
    return (model, loaded[1]) if isinstance(loaded, tuple) else model


def begin(model: Any, job: Job) -> None:
    """Plain greedy generation, whatever the model's own settings are: what was accepted was greedy."""
    from transformers import GenerationConfig

    ends = job["end_ids"] or None
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=ends[0] if ends else 0)


def run(model: Any, job: Job, which: str, generate: bool = True) -> Report:
    """Free answers of every trial, and how far the logits are from the live model's, with the adapter or without."""
    import torch
    from safetensors import safe_open

    answers, distances, moves, wrong = [], [], [], 0
    with safe_open(Path(job["trials"]).with_name("logits.safetensors"), framework="pt") as reference:
        for number, trial in enumerate(json.loads(Path(job["trials"]).read_text(encoding="utf-8"))):
            found = logits_at(model, [*trial["prompt_ids"], *trial["accepted_ids"]], trial["where"])
            there = reference.get_tensor(f"{which}.{number}")
            if found.shape != there.shape or not bool(torch.isfinite(found[torch.isfinite(there)]).all()):
                wrong += 1
            else:
                real = torch.isfinite(there)
                distances.append(float((found[real] - there[real]).abs().max()))
                other = reference.get_tensor(f"{'without' if which == 'with' else 'with'}.{number}")
                moves.append(float((other[real] - there[real]).abs().max()))
            if generate:
                ids = torch.tensor([trial["prompt_ids"]], device=model.device)
                text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=trial["room"])
                answers.append(text[0, ids.shape[1]:].tolist())
    return {"answers": answers, "distance": max(distances, default=0.0), "move": max(moves, default=0.0), "wrong": wrong}


def logits_at(model: Any, ids: Sequence[int], where: Sequence[int]) -> Any:
    """Logits (R, V) behind the tokens at positions `where` of `ids`, float32 on the CPU, in one plain forward."""
    import torch

    index = torch.tensor(where, device=model.device)
    keep = {"logits_to_keep": index} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad():
        out = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False, **keep).logits[0]
    return (out if out.shape[0] == len(where) else out[index]).float().cpu().contiguous()


def tensors_differ(file: dict[str, Any], loaded: dict[str, Any]) -> Report:
    """Names of tensors that were not loaded, that came from nowhere, or that hold other numbers than the file, in the number type loaded."""
    import torch

    same = {name for name in file.keys() & loaded.keys() if file[name].shape == loaded[name].shape
            and bool(torch.equal(file[name].to(loaded[name].dtype), loaded[name].detach().cpu()))}
    return {"missing": sorted(file.keys() - loaded.keys()), "odd": sorted(loaded.keys() - file.keys()),
            "changed": sorted((file.keys() & loaded.keys()) - same)}


def render(tokenizer: Any, messages: list[dict[str, str]], arguments: dict[str, Any]) -> list[int] | None:
    """Ids of a conversation as a user of the tokenizer gets them; None where there is no template, or it refuses."""
    if not tokenizer.chat_template:
        return None
    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **arguments))
    except Exception:  # noqa: BLE001  # a template is somebody's program; the comparison says that nothing came
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
