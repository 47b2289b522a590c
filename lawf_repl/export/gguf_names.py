"""What llama.cpp calls a model's architecture and tensors, and how it stores the rows of q and k."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lawf_repl.errors import ExportError


@dataclass(frozen=True)
class Layout:
    """One architecture of llama.cpp."""

    name: str       # its general.architecture
    permuted: bool  # q and k are stored for the rotation of neighbouring pairs, where transformers rotates halves


# Only what was compared with llama.cpp, logit by logit (tests/test_llama_cpp.py): a wrong layout loads and answers.
LAYOUTS = {
    "llama": Layout("llama", permuted=True),
    "mistral": Layout("llama", permuted=True),
    "qwen2": Layout("qwen2", permuted=False),
    "qwen3": Layout("qwen3", permuted=False),
}


def library() -> Any:
    """The gguf package. Raises ExportError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise ExportError("writing GGUF needs the gguf package, which is not installed: pip install 'lawf-repl[gguf]'") from error
    return gguf


def layout_of(model: Any) -> Layout:
    """How llama.cpp stores a model of this kind. Raises ExportError, by the name of the architecture, where that is not known."""
    kind = str(getattr(model.config, "model_type", ""))
    if kind not in LAYOUTS:
        raise ExportError(f"{type(model).__name__} (model type {kind or 'unknown'}) cannot be written as GGUF: expected one of {', '.join(LAYOUTS)}; "
                          "export it as peft or merged, and convert that with llama.cpp's own scripts")
    return LAYOUTS[kind]


class TensorNames:
    """transformers' name -> llama.cpp's, through the tables of the gguf package."""

    def __init__(self, model: Any, layout: Layout) -> None:
        gguf = library()
        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.name)
        self._table = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
        self._model = type(model).__name__

    def __getitem__(self, name: str) -> str:
        """Raises ExportError for a tensor that llama.cpp has no name for."""
        found = self._table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportError(f"{self._model} cannot be written as GGUF: llama.cpp has no name for its tensor {name}; export as peft or merged")
        return str(found)


def stored_rows(tensor: torch.Tensor, name: str, model: Any, layout: Layout) -> torch.Tensor:
    """Rows as llama.cpp stores them: (out, ...) -> (out, ...), permuted within each head for the q and k of Llama-type models.

    `name` is transformers' name of the layer or of one of its tensors. The same permutation serves a weight (out, in), a bias
    (out,) and the B (out, r) of a LoRA, whose rows are the layer's outputs too.
    """
    layer = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}.get(layer)
    if not layout.permuted or heads is None:
        return tensor
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


@contextmanager
def writing(out_file: Path, layout: Layout) -> Iterator[Any]:
    """A GGUFWriter whose file stands at `out_file` once the body has ended, whole; a body that fails leaves what was there.

    Raises ExportError where the place cannot be written.
    """
    part = out_file.with_name(f".{out_file.name}.{os.getpid()}.part")
    writer = library().GGUFWriter(part, layout.name)
    try:
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, out_file)
    except OSError as error:
        said = error.strerror or f"the disk took no more of it ({error})"  # numpy's own error has no words for it
        raise ExportError(f"{out_file} cannot be written: {said}") from error
    finally:
        writer.close()
        part.unlink(missing_ok=True)
