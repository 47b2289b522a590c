"""The demo model's tokenizer: byte-level BPE that splits as Qwen2's tokenizer does, digits one by one, and its ChatML template.

Chinese characters are kept apart while merges are learned, so that a Chinese name is several tokens, as in real models.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# The pattern of Qwen2's tokenizer (transformers, tokenization_qwen2.py).
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
VALID_BYTES = [byte for byte in range(256) if byte not in (0xC0, 0xC1, *range(0xF5, 0x100))]  # the others occur in no UTF-8 text


def byte_characters() -> dict[int, str]:
    """Byte -> the printable character that stands for it in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Learn `size` tokens from `texts` (conversation contents, without the template's marks)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split[0], pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"), split[1]])
    tokenizer.decoder = decoders.ByteLevel()
    characters = byte_characters()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END_OF_TEXT, TURN, END_OF_TURN], show_progress=False,
                                  initial_alphabet=[characters[byte] for byte in VALID_BYTES])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TURN, pad_token=END_OF_TEXT, chat_template=CHAT_TEMPLATE,
                                   clean_up_tokenization_spaces=False, model_max_length=1024, additional_special_tokens=[TURN])


def pieces(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> list[str]:
    """Texts whose encodings together contain every ordinary token, one or more for each.

    A token that is whole UTF-8 stands for itself; a part of a character is completed to one, by bytes before or behind.
    Raises ValueError naming a token that no text was found for.
    """
    rng = random.Random(seed)
    back = {character: byte for byte, character in byte_characters().items()}
    out = []
    for token, id_ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        if id_ in tokenizer.all_special_ids:
            continue
        raw = bytes(back[character] for character in token)
        found = next((text for text in _completions(raw, rng) if id_ in tokenizer(text)["input_ids"]), None)
        if found is None:
            raise ValueError(f"no text gives token {id_} ({token!r}, bytes {raw.hex()})")
        out.append(found)
    return out


def _completions(raw: bytes, rng: random.Random) -> Iterable[str]:
    try:
        yield raw.decode("utf-8")
        yield " " + raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    fill = [b"", *(bytes([byte]) for byte in VALID_BYTES)]
    for _ in range(60000):
        before = b"".join(rng.choice(fill) for _ in range(rng.randint(0, 3)))
        behind = b"".join(rng.choice(fill[129:194]) for _ in range(rng.randint(0, 3)))
        try:
            text = (before + raw + behind).decode("utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) <= 2:
            yield text


def render(messages: Sequence[dict[str, str]]) -> str:
    """The template's text of a whole training conversation, closed by the end-of-text mark."""
    return "".join(f"{TURN}{m['role']}\n{m['content']}{END_OF_TURN}\n" for m in messages) + END_OF_TEXT
