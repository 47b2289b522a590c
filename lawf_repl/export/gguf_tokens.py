"""A tokenizer as llama.cpp reads it from a GGUF file: byte-level BPE whose way of splitting text llama.cpp has, too."""

from __future__ import annotations

import json
from typing import Any

from lawf_repl.errors import ExportError
from lawf_repl.export.gguf_names import library

# llama.cpp knows splits by name; the patterns are those that it implements for the name. A wrong known name loads and mistokenizes.
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SPLITS = {_WORDS + r"|\p{N}" + _REST: "qwen2", _WORDS + r"|\p{N}{1,3}" + _REST: "llama-bpe"}
KEEPS_WHOLE = frozenset({"llama-bpe"})  # names under which llama.cpp takes a word that is a token without merging (ignore_merges)


def add_tokenizer(writer: Any, model: Any, tokenizer: Any) -> None:
    """Write tokens, merges, types, the split's name, special ids and chat template of a transformers tokenizer.

    llama.cpp does not normalize: text that is not in Unicode's composed form (NFC) may become other ids there than here.
    Raises ExportError for a tokenizer that llama.cpp would read in another way.
    """
    gguf = library()
    state = _state(tokenizer)
    size = int(model.get_input_embeddings().weight.shape[0])
    texts = {id_: text for text, id_ in state["model"]["vocab"].items()}
    types = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for token in state["added_tokens"]:
        texts[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    if max(texts) >= size:
        raise ExportError(f"the tokenizer has token {max(texts)}, the model's embeddings end at {size - 1}: expected a tokenizer that fits the model")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(state))
    writer.add_token_list([texts.get(id_, f"[PAD{id_}]") for id_ in range(size)])
    writer.add_token_types([types.get(id_, gguf.TokenType.UNUSED) for id_ in range(size)])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    if not merges:
        raise ExportError("the tokenizer has no merges: llama.cpp loads none without")
    writer.add_token_merges(merges)
    _add_special_ids(writer, model, tokenizer)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        writer.add_chat_template(template)


def split_name(state: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer.json splits text. Raises ExportError where it has none that is equal."""
    splitter, model = state["pre_tokenizer"] or {}, state["model"]
    normalizer = (state["normalizer"] or {}).get("type", "NFC")
    plain_bpe = model["type"] == "BPE" and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                                                            "byte_fallback"))
    strict = not any(token[key] for token in state["added_tokens"] for key in ("lstrip", "rstrip", "single_word"))
    name = None
    if splitter.get("type") == "ByteLevel" and splitter["use_regex"] and not splitter["add_prefix_space"]:
        name = "gpt-2"
    elif splitter.get("type") == "Sequence" and len(splitter["pretokenizers"]) == 2:
        split, byte_level = splitter["pretokenizers"]
        plain = byte_level["type"] == "ByteLevel" and not byte_level["use_regex"] and not byte_level["add_prefix_space"]
        if plain and split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]:
            name = SPLITS.get(split["pattern"].get("Regex", ""))
    if name is None or normalizer != "NFC" or not plain_bpe or not strict or bool(model.get("ignore_merges")) != (name in KEEPS_WHOLE):
        raise ExportError("this tokenizer cannot be written as GGUF: expected byte-level BPE that splits text as GPT-2, Llama 3 or Qwen2 do; "
                          "take a base in GGUF that llama.cpp's own script made, and export the adapter alone")
    return name


def _state(tokenizer: Any) -> dict[str, Any]:
    """The contents of tokenizer.json."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{type(tokenizer).__name__} cannot be written as GGUF: expected a tokenizer with a tokenizer.json")
    state: dict[str, Any] = json.loads(backend.to_str())
    return state


def _add_special_ids(writer: Any, model: Any, tokenizer: Any) -> None:
    ends = model.generation_config.eos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    end = ends[0] if isinstance(ends, list | tuple) else ends
    if end is None:
        raise ExportError("the tokenizer names no end-of-turn token: llama.cpp would end answers at token 11")
    candidates = (tokenizer.bos_token_id, model.config.bos_token_id, tokenizer.pad_token_id, end)
    begin = next(id_ for id_ in candidates if id_ is not None)
    writer.add_eos_token_id(int(end))
    writer.add_bos_token_id(int(begin))  # never put in front where there is none, but unnamed it would be token 11, a word
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(int(tokenizer.pad_token_id))
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
