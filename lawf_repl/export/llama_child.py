"""What `llama.py` starts in a process of its own: llama.cpp loads a base and a LoRA and answers, a task in and a result out as JSON.

llama.cpp ends the whole process where a file is wrong, so nothing else may live in this one. Nothing of lawf is imported.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

F32 = 0  # GGML_TYPE_F32; the usual float16 cache costs 1e-2 in logits, which can turn a greedy answer


class Failure(Exception):
    """llama.cpp would not do it; the message says what."""


class Llama:
    """A base in llama.cpp on the CPU, with a LoRA that can be put on at a scale. Everything is float32 that can be."""

    def __init__(self, cpp: Any, base_file: str, context: int = 0) -> None:
        """`context` tokens at most; 0: the vocabulary alone is loaded. Raises Failure for a file that llama.cpp refuses."""
        self.cpp, self.adapters, self.context = cpp, None, None
        cpp.llama_backend_init()
        params = cpp.llama_model_default_params()
        params.vocab_only, params.use_extra_bufts, params.n_gpu_layers = not context, False, 0  # the extra buffers crashed under a LoRA
        self.model = cpp.llama_model_load_from_file(base_file.encode(), params)
        if not self.model:
            raise Failure("llama.cpp does not load the base")
        self.vocab = cpp.llama_model_get_vocab(self.model)
        self.size = int(cpp.llama_vocab_n_tokens(self.vocab))
        if context:
            self._open(context)

    def _open(self, context: int) -> None:
        params = self.cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.type_k = params.type_v = F32
        params.flash_attn_type = self.cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = max(1, min(8, (os.cpu_count() or 1) // 2))  # they spin: one too many stands still
        self.context = self.cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise Failure("llama.cpp makes no context for the base")

    def load_lora(self, file: str) -> None:
        """Load the adapter, off. Raises Failure where llama.cpp refuses it: decoding with a null pointer would crash."""
        adapter = self.cpp.llama_adapter_lora_init(self.model, file.encode())
        if not adapter:
            raise Failure("llama.cpp does not load the LoRA")
        self.adapters = (self.cpp.llama_adapter_lora_p_ctypes * 1)(adapter)

    def set_scale(self, scale: float | None) -> None:
        """Put the adapter on at `scale`, or take it off."""
        scales = (ctypes.c_float * 1)(scale or 0.0)
        if self.cpp.llama_set_adapters_lora(self.context, self.adapters, 0 if scale is None else 1, scales) != 0:
            raise Failure("llama.cpp does not put the LoRA on")

    def forced(self, prompt: Sequence[int], completion: Sequence[int], file: Path) -> None:
        """Write the logits (T, V), float32, that predict each token of a completion after its prompt."""
        self._clear()
        ids = [*prompt, *completion[:-1]]
        rows = range(len(prompt) - 1, len(ids))
        with file.open("wb") as out, self._decoded(ids, 0, rows):
            for row in rows:
                out.write(self._logits(row))

    def greedy(self, prompt: Sequence[int], most: int) -> list[int]:
        """The `most` most likely next tokens, one after the other; fewer after an end of generation."""
        self._clear()
        found: list[int] = []
        ids, start = list(prompt), 0
        while len(found) < most:
            with self._decoded(ids, start, [len(ids) - 1]):
                logits = array.array("f", self._logits(len(ids) - 1))
            start += len(ids)
            found.append(logits.index(max(logits)))
            if self.cpp.llama_vocab_is_eog(self.vocab, found[-1]):
                break
            ids = found[-1:]
        return found

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text in which marks such as <|im_start|> are special tokens, with nothing put in front."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 16))()
        count = self.cpp.llama_tokenize(self.vocab, raw, len(raw), room, len(room), False, True)
        if count < 0:
            raise Failure("llama.cpp does not tokenize the text")
        return list(room[:count])

    def text(self, ids: Sequence[int]) -> str:
        """Ids as llama.cpp prints them, special tokens included."""
        out = b""
        room = ctypes.create_string_buffer(4096)
        for id_ in ids:
            count = self.cpp.llama_token_to_piece(self.vocab, id_, room, len(room), 0, True)
            out += room.raw[:max(0, count)]
        return out.decode("utf-8", "replace")

    def _clear(self) -> None:
        self.cpp.llama_memory_clear(self.cpp.llama_get_memory(self.context), True)

    def _logits(self, row: int) -> bytes:
        return ctypes.string_at(self.cpp.llama_get_logits_ith(self.context, row), 4 * self.size)

    @contextmanager
    def _decoded(self, ids: Sequence[int], start: int, rows: Sequence[int]) -> Iterator[None]:
        """Inside the body, logits stand at `rows` of a batch of ids, the first at position `start`."""
        batch = self.cpp.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for row, id_ in enumerate(ids):
                batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.logits[row] = id_, start + row, 1, row in rows
                batch.seq_id[row][0] = 0
            if self.cpp.llama_decode(self.context, batch) != 0:
                raise Failure("llama.cpp does not decode")
            yield
        finally:
            self.cpp.llama_batch_free(batch)


def check(cpp: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Answers with the LoRA and without, and files of logits along both answers: with it, without it, and with it at scale 0."""
    prompt, accepted, base, folder = task["prompt_ids"], task["accepted_ids"], task["base_ids"], Path(task["folder"])
    llama = Llama(cpp, task["base"], len(prompt) + max(len(accepted), len(base)) + 8)
    llama.load_lora(task["lora"])
    found: dict[str, Any] = {"vocabulary": llama.size}
    for name, scale in (("without", None), ("with", 1.0), ("zero", 0.0)):
        llama.set_scale(scale)
        llama.forced(prompt, accepted, folder / f"{name}.accepted")
        llama.forced(prompt, base, folder / f"{name}.base")
        if name != "zero":
            found[f"{name}_ids"] = llama.greedy(prompt, len(accepted if name == "with" else base))
            found[f"{name}_text"] = llama.text(found[f"{name}_ids"])
    return found


def tokenize(cpp: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Ids of each text."""
    llama = Llama(cpp, task["base"])
    return {"ids": [llama.tokenize(text) for text in task["texts"]]}


def main() -> int:
    task = json.load(sys.stdin)
    try:
        import llama_cpp as cpp
    except (ImportError, OSError, RuntimeError) as error:  # the last two: built for another machine
        print(json.dumps({"missing": str(error)}))
        return 0

    def log(level: int, text: bytes, data: Any) -> None:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()

    callback = cpp.llama_log_callback(log)
    cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        result = {"check": check, "tokenize": tokenize}[task["do"]](cpp, task)
    except Failure as error:
        result = {"failure": str(error)}
    except AttributeError as error:  # a llama-cpp-python of another time
        result = {"missing": str(error)}
    result["version"] = str(cpp.__version__)
    print(json.dumps(result), flush=True)
    os._exit(0)  # what llama.cpp frees on the way out can only crash


if __name__ == "__main__":
    sys.exit(main())
