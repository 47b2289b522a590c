"""A transformers tokenizer in the literal way that `spans.Tokenizer` asks for: what is typed is text, what is shown is all there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer as Backend

WORD_START = "\u2581"  # what SentencePiece writes for a space
# How byte-level BPE writes bytes (GPT-2's encoder.py): printable Latin-1 as itself, the others from U+0100 on.
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {chr(256 + number): byte for number, byte in enumerate(_OTHERS)}


class HubTokenizer:
    """Encodes and decodes without special tokens being added, parsed or skipped, and without any clean-up."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int] = frozenset()) -> None:
        """`end_ids` are the model's end-of-turn tokens: marks, even where the tokenizer takes them for plain text."""
        self.hub = tokenizer
        added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = frozenset(tokenizer.all_special_ids) | added | end_ids
        self.special_texts = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        tokenizer.chat_control_tokens = []  # in prompts too, only special tokens are text: <think> in a given answer stays what it is
        self._backend: Backend | None = getattr(tokenizer, "backend_tokenizer", None)
        self._uncleaned = _without_cleanup(self._backend) if self._backend is not None else None
        self._bytes = _byte_ids(self._backend) if self._backend is not None else {}
        self._byte_level = self._backend is not None and self._backend.decoder is not None \
            and "ByteLevel" in self._backend.decoder.__getstate__().decode()
        self._byte_of = {id_: byte for byte, id_ in self._bytes.items()}

    def encode(self, text: str) -> list[int]:
        """Ids as the tokenizer itself would split `text`; typed special tokens are text, not marks."""
        return list(self.hub(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def spellings(self, text: str) -> Iterator[list[int]]:
        """Ids for `text` past the normalizer, which may have changed it, and past added tokens: by words, whole, by characters, by bytes."""
        if self._backend is None:
            return
        model, splitter = self._backend.model, self._backend.pre_tokenizer

        def tokens(piece: str) -> list[int]:
            return [token.id for token in model.tokenize(piece)] if piece else []

        marked = text.replace(" ", WORD_START)
        if splitter is not None:
            yield [id_ for split, _ in splitter.pre_tokenize_str(text) for id_ in tokens(split)]
            yield [id_ for character in text for split, _ in splitter.pre_tokenize_str(character) for id_ in tokens(split)]
        yield tokens(marked)
        yield [id_ for character in marked for id_ in tokens(character)]
        if self._bytes:
            yield [self._bytes[byte] for byte in text.encode("utf-8", "surrogatepass")]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included; bytes that are no whole character show as U+FFFD, and change nothing else."""
        ids = list(ids)
        if self._uncleaned is not None:
            return str(self._uncleaned.decode(ids, skip_special_tokens=False))
        text = str(self.hub.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if self._bytes and "\ufffd" in text:
            return self._decode_broken(ids, text)
        return text

    def token_bytes(self, id_: int) -> bytes:
        """The bytes that a token stands for, also where they are only part of a character; of a special token those of its name."""
        if id_ in self._byte_of:
            return bytes([self._byte_of[id_]])
        written = str(self.hub.convert_ids_to_tokens(id_) or "")
        if self._byte_level and not self.is_special(id_) and all(character in BYTE_OF for character in written):
            return bytes(BYTE_OF[character] for character in written)
        return (written if self.is_special(id_) else self.decode([id_])).encode("utf-8", "surrogatepass")

    def is_special(self, id_: int) -> bool:
        return id_ in self._special

    def _decode_broken(self, ids: list[int], text: str) -> str:
        """`ids` with a run of byte tokens that is no UTF-8: only the broken bytes are shown as such.

        The decoders of this family turn the whole run into U+FFFD, whole characters before the broken one too, so that a
        token would change the text that was shown before it.
        """
        # a private character that the text does not have, not even in the runs that are broken in `text`
        there = text + bytes(self._byte_of.get(id_, 0x20) for id_ in ids).decode("utf-8", "ignore")
        stand_in = next(chr(code) for code in range(0xF8FF, 0xE000, -1) if chr(code) not in there)
        mended: list[int] = []
        run = bytearray()
        for id_ in [*ids, -1]:
            if id_ in self._byte_of:
                run.append(self._byte_of[id_])
                continue
            mended += [self._bytes[byte] for byte in run.decode("utf-8", "replace").replace("\ufffd", stand_in).encode()]
            run.clear()
            mended.append(id_)
        return str(self.hub.decode(mended[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False)).replace(stand_in, "\ufffd")


def _byte_ids(backend: Backend) -> dict[int, int]:
    """byte -> id of its token <0x..>, where the decoder knows such tokens; else empty."""
    if backend.decoder is None or "ByteFallback" not in backend.decoder.__getstate__().decode():
        return {}
    found = {byte: backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {byte: id_ for byte, id_ in found.items() if id_ is not None} if all(id_ is not None for id_ in found.values()) else {}


def _without_cleanup(backend: Backend) -> Backend | None:
    """A copy whose decoder leaves the spaces before marks and inside contractions alone, where the decoder itself has that clean-up."""
    if backend.decoder is None or '"cleanup":true' not in backend.decoder.__getstate__().decode().replace(" ", ""):
        return None
    state = json.loads(backend.to_str())
    _switch_cleanup_off(state["decoder"])
    return Backend.from_str(json.dumps(state))


def _switch_cleanup_off(decoder: dict[str, Any]) -> None:
    if "cleanup" in decoder:
        decoder["cleanup"] = False
    for inner in decoder.get("decoders", ()):
        _switch_cleanup_off(inner)
