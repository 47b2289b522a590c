"""Loading a causal language model with its tokenizer and chat template, once, for everything that follows."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.import_utils import is_bitsandbytes_available

from lawf_repl.collector import paused
from lawf_repl.config import Settings
from lawf_repl.engine.layout import lay_out
from lawf_repl.engine.memory import memory_guard
from lawf_repl.engine.progress import Report, reported
from lawf_repl.engine.threads import choose_threads
from lawf_repl.engine.tokenizer import HubTokenizer
from lawf_repl.engine.trial import try_model
from lawf_repl.errors import ModelError, PromptError, TrainingError, UsageError, first_line
from lawf_repl.records import Message
from lawf_repl.spans import REPLACEMENT, bytes_name

DEMO_MODEL = Path(__file__).parent.parent / "demo" / "model"
DEMO_NAME = "lawf-demo"
TRIAL_TEXT = "The quick brown fox jumps over the lazy dog, and 12 others follow."
NOTES = {"snapshot": "{} has recurrent layers, which cannot be cut: a correction restores a snapshot and reads a few tokens again",
         "recompute": "{} has a cache that cannot be cut: a correction reads the prompt and what was kept of the answer again",
         "none": "{} has no cache that can be relied on: every token reads the whole text again, which is slow"}
# A chat template is somebody's program: what it raises where it refuses a conversation, or is wrong.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
RESERVED = frozenset({"tokenize", "add_generation_prompt", "continue_final_message", "conversation", "chat_template", "padding", "truncation",
                      "max_length", "tokenizer_kwargs"})  # arguments of apply_chat_template itself


class Engine:
    """One loaded model: weights, tokenizer, template and what follows from them. Holds no conversation."""

    def __init__(self, model: Any, tokenizer: Any, name: str, template_args: Sequence[tuple[str, Any]] = (), revision: str | None = None) -> None:
        self.model = model.eval()
        self.end_ids = self._find_end_ids(tokenizer)
        self.tokenizer = HubTokenizer(tokenizer, self.end_ids)
        self.name = name
        self.revision = revision
        self.template_args = dict(template_args)
        for key in self.template_args:
            if key in RESERVED or key.startswith("return_"):
                raise UsageError(f"--template-arg {key}: this is lawf's own to set; expected a variable of the chat template such as enable_thinking")
        self.notes: list[str] = []  # said once to the user
        self._texts: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self.end_id = self._find_end_id()
        self.cache_kind = try_model(self.model, self.tokenizer.encode(TRIAL_TEXT), name)
        if not self.has_template:
            self.notes.append(f"{name} has no chat template: the prompt is given to it as plain text")
        if not self.end_ids:
            self.notes.append(f"{name} names no end-of-turn token: its answers end at the token limit")
        self.notes += [NOTES[self.cache_kind.mode].format(name)] if self.cache_kind.mode in NOTES else []

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def context_length(self) -> int | None:
        """Most tokens that prompt and answer may have together; None where the config names no limit."""
        config = self.model.config.get_text_config(decoder=True)
        length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return int(length) if length else None

    def token_text(self, id_: int) -> str:
        """Text of a token on its own, its leading space kept."""
        if id_ not in self._texts:
            lead = self._lead
            whole = self.tokenizer.decode([*lead, id_])
            self._texts[id_] = whole[len(self.tokenizer.decode(lead)):]
        return self._texts[id_]

    def token_name(self, id_: int) -> str:
        """What a token is called on its own: its text, or its bytes as 0xe58c where it is only part of a character.

        Parts of characters have no text by which they could be told apart.
        """
        if id_ not in self._names:
            text = self.token_text(id_)
            self._names[id_] = bytes_name(self.tokenizer.token_bytes(id_)) if REPLACEMENT in text else text
        return self._names[id_]

    @property
    def _lead(self) -> list[int]:
        # Some decoders strip the first token's space: show every token behind another one.
        if not hasattr(self, "_lead_ids"):
            self._lead_ids = self.tokenizer.encode("a")[-1:]
        return self._lead_ids

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of a conversation up to the answer: through the chat template, or the plain text where there is none.

        Raises PromptError where the text is empty or the template refuses the messages.
        """
        if not messages or not any(message["content"].strip() for message in messages if message["role"] != "system"):
            raise PromptError("the prompt is empty: type a question")
        hub = self.tokenizer.hub
        if not self.has_template:
            text = "\n".join(message["content"] for message in messages)
            return tuple(hub(text, split_special_tokens=True)["input_ids"])
        try:
            # special tokens that somebody typed are text; without one, the whole prompt is split as it is everywhere else
            typed = any(mark in message["content"] for mark in self.tokenizer.special_texts for message in messages)
            ids = hub.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False, sanitize_control_tokens=typed,
                                          **self.template_args)
        except TEMPLATE_ERRORS as error:  # a template is somebody's program
            raise PromptError(f"the chat template of {self.name} refuses this conversation: {first_line(error)}") from error
        return tuple(ids)

    def mark(self, scope: str) -> tuple[int, ...]:
        """Ids from which on an adapter of this scope acts: what the template puts before an answer; none where it acts on the whole text.

        Raises TrainingError where there is no such thing.
        """
        if scope == "text":
            return ()
        found = self._answer_mark()
        if not found:
            raise TrainingError(f"scope completion: {self.name} has no chat template that puts something before an answer, from which on the adapter "
                                "would act; expected one with add_generation_prompt, or scope text")
        return found

    def _answer_mark(self) -> tuple[int, ...]:
        if not self.has_template:
            return ()
        rows = []
        for text in ("7", "zq"):
            try:
                asked = self.tokenizer.hub.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=False, return_dict=False,
                                                               **self.template_args)
            except TEMPLATE_ERRORS:
                return ()
            whole = self.prompt_ids([{"role": "user", "content": text}])
            rows.append(whole[len(asked):] if whole[:len(asked)] == tuple(asked) else ())
        return rows[0] if rows[0] == rows[1] else ()

    def follow_up_ids(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of a conversation whose last two messages are an answer and what is said next, up to the next answer.

        `prompt_ids` and `answer_ids` are what the answer was generated from and as: they stay as they are wherever the template
        puts the earlier turns there unchanged, although their text might be split otherwise. Raises PromptError.
        """
        ids = self.prompt_ids(messages)
        known = [*prompt_ids, *answer_ids]
        if not self.has_template:  # a plain text goes on
            known = known[:-1] if known[-1:] and known[-1] in self.end_ids else known
            return (*known, *self.tokenizer.encode("\n" + messages[-1]["content"]))
        text, shared = self.tokenizer.decode(known), 0
        if list(ids[:len(known)]) == known:
            return ids
        if not self.tokenizer.decode(ids).startswith(text):
            return ids  # the template writes earlier turns anew, without their thinking for example
        while shared < len(ids) and len(self.tokenizer.decode(ids[:shared])) < len(text):
            shared += 1
        return (*known, *ids[shared:]) if self.tokenizer.decode(ids[:shared]) == text else ids

    def fingerprint(self) -> dict[str, str]:
        """What a session file records of the model: id, revision, hashes of config, tokenizer and template, dtype."""
        config = self.model.config.to_dict()
        for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(volatile, None)
        return {"id": self.name, "revision": self.revision or "",
                "config_sha256": _sha256(json.dumps(config, sort_keys=True, default=str)), "tokenizer_sha256": self._tokenizer_sha256,
                "template_sha256": _sha256(str(self.tokenizer.hub.chat_template or "")), "dtype": self.dtype}

    @cached_property
    def _tokenizer_sha256(self) -> str:
        """Writing a tokenizer of a large vocabulary out takes a third of a second."""
        backend = getattr(self.tokenizer.hub, "backend_tokenizer", None)
        return _sha256(backend.to_str() if backend is not None else json.dumps(self.tokenizer.hub.get_vocab(), sort_keys=True))

    def _find_end_ids(self, tokenizer: Any) -> frozenset[int]:
        found: set[int] = set()
        for source in (self.model.generation_config, self.model.config, tokenizer):
            value = getattr(source, "eos_token_id", None)
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
        return frozenset(int(id_) for id_ in found)

    def _find_end_id(self) -> int | None:
        """The end-of-turn token that the template puts behind an answer; else the tokenizer's own."""
        own = self.tokenizer.hub.eos_token_id
        if self.has_template:
            mark = "lawf end"
            turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
            try:
                text = str(self.tokenizer.hub.apply_chat_template(turn, tokenize=False))
            except TEMPLATE_ERRORS:  # it refuses an assistant's turn
                return own if own is not None else min(self.end_ids, default=None)
            behind = self.tokenizer.hub(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
            found = next((id_ for id_ in behind if id_ in self.end_ids), None)
            if found is not None:
                return int(found)
            closing = next((id_ for id_ in behind if self.tokenizer.is_special(id_)), None)
            if closing is not None and not self.end_ids:
                self.end_ids = frozenset({int(closing)})  # nothing else names one
                return int(closing)
            if closing is not None:
                self.notes.append(f"the chat template of {self.name} closes an answer with {self.tokenizer.decode([closing])}, which the model does "
                                  "not name as an end of turn: it is an ordinary special token here")
        return own if own is not None else min(self.end_ids, default=None)


def load_engine(settings: Settings, report: Report | None = None) -> Engine:
    """Load the model that the settings name, or the embedded demo model.

    `report` is called with the progress of downloads and of loading.
    One copy of the weights; bfloat16 on an accelerator and float32 on a CPU unless told. Raises ModelError in one line
    for everything that can be wrong with a name, a folder or a device.
    """
    quiet()
    demo = settings.model is None
    source = str(DEMO_MODEL) if settings.model is None else settings.model
    name = DEMO_NAME if demo else source
    looks_local = source.startswith((".", "/", "~")) or os.path.exists(source)
    if looks_local and not demo:
        source = os.path.expanduser(source)
        check_folder(Path(source))
    elif not demo:
        check_id(source)
    if settings.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    common: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, "local_files_only": settings.offline or looks_local or demo}
    if settings.revision:
        common["revision"] = settings.revision
    device = pick_device(settings.device)
    try:
        with paused(), memory_guard(f"loading {name}", "take a smaller model, --dtype bfloat16 or --device cpu", sizes=True):
            return _load(source, name, device, common, settings, report)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(explain(error, name, looks_local, settings)) from error


def _load(source: str, name: str, device: torch.device, common: dict[str, Any], settings: Settings, report: Report | None) -> Engine:
    config = AutoConfig.from_pretrained(source, **common)
    check_causal(config, name)
    tokenizer = AutoTokenizer.from_pretrained(source, **common)
    with reported(report) as told:
        model = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=pick_dtype(settings.dtype, device), **common,
                                                     **placement(settings), **told)
    if not settings.device_map and not settings.quantize:
        model.to(device)  # type: ignore[arg-type]  # transformers' annotation of its own wrapper is off
    choose_threads(model)
    lay_out(model)
    return Engine(model, tokenizer, name, settings.template_args, commit_of(source, common))


def commit_of(source: str, common: dict[str, Any]) -> str | None:
    """The commit that a hub model was loaded from, as the cache has it: a branch moves on. None for a folder."""
    try:
        file = try_to_load_from_cache(source, "config.json", revision=common.get("revision"))
    except ValueError:  # a path
        return None
    return Path(file).parent.name if isinstance(file, str) and not os.path.isdir(source) else None


def quiet() -> None:
    """Keep the libraries' own bars and warnings off the user's screen."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("huggingface_hub", "bitsandbytes"):  # their retries and casts would write into the prompt
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|bitsandbytes)(\.|$)")


def check_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` looks like a saved model."""
    if not folder.exists():
        raise ModelError(f"no model at {folder}: the folder does not exist; give a folder with config.json or a hub id such as owner/name")
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file: expected a folder with config.json, or a hub id")
    if not (folder / "config.json").is_file():
        hint = " (it holds an adapter: name its base with --model and it with --adapter)" if (folder / "adapter_config.json").is_file() else ""
        raise ModelError(f"no model at {folder}: it has no config.json{hint}")


def check_id(name: str) -> None:
    """Raise ModelError for what cannot be the hub id of a model."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ModelError(f"expected a folder or a hub id such as Qwen/Qwen3-0.6B, found {name!a}, which is neither") from None


def check_causal(config: Any, name: str) -> None:
    """Raise ModelError for a config that is no causal language model's."""
    architectures = getattr(config, "architectures", None) or []
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = own_code or getattr(config, "model_type", None) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    other = architectures and not any(a.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for a in architectures)
    if not known or other or getattr(config, "is_encoder_decoder", False):
        found = ", ".join(architectures) or getattr(config, "model_type", "nothing known")
        raise ModelError(f"{name} is not a causal language model: expected a decoder such as Qwen3ForCausalLM, found {found}")


def pick_device(wanted: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "mps". Raises ModelError where it is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(wanted.split(":")[0], False):
        raise ModelError(f"device {wanted} was asked for and this machine has none that torch {torch.__version__} can use: take --device cpu or auto")
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[wanted]


def placement(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of from_pretrained for --device-map and --quantize. Raises ModelError where the library is missing."""
    out: dict[str, Any] = {"device_map": settings.device_map} if settings.device_map else {}
    if settings.quantize:
        if not is_bitsandbytes_available():
            raise ModelError(f"--quantize {settings.quantize} needs bitsandbytes, which is not installed: pip install 'lawf-repl[quantize]'")
        out["quantization_config"] = transformers.BitsAndBytesConfig(**{f"load_in_{settings.quantize}": True})
        out.setdefault("device_map", "auto" if settings.device == "auto" else {"": settings.device})
    return out


def explain(error: Exception, name: str, local: bool, settings: Settings) -> str:
    """One line on why a model did not load."""
    text = first_line(error)
    if not local and settings.offline:
        return f"{name} is not in the local cache and --offline forbids downloading it: drop --offline once, or give a folder"
    if not local and isinstance(error, OSError):
        return f"{name} could not be fetched from the hub: {text} (check the name and the network, or give a folder)"
    if "trust_remote_code" in text:
        return f"{name} needs code of its own: read it, then pass --trust-remote-code"
    return f"{name} could not be loaded: {text}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
