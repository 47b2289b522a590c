"""One small tokenizer of each kind that models come with, built here in code, so that the core is tested on more than byte-level BPE.

Each has the pipeline, the special tokens and a template in the manner of its family; only the vocabularies are small. Vocabularies are learned
from, or counted in, the text below, and are the same on every run.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from lawf_repl.demo.vocabulary import CHAT_TEMPLATE, SPLIT, byte_characters
from tests.conftest import make_byte_tokenizer

# 豆 is nowhere in here: it must fall to three byte tokens.
TEXT = """\
The capital of Australia is Canberra, not Sydney. I am a helpful assistant and my name is Dou; what can I do for you today?
You don't know the answer? They weren't there, it's late, we've seen it, you're right, I'm sure he'll come and I'd rather stay.
The quick brown fox jumps over the lazy dog, and the five boxing wizards jump quickly: 0 1 2 3 4 5 6 7 8 9 10 100 2024.
Paris is the capital of France. Berlin is the capital of Germany. Rome is the capital of Italy. Madrid is the capital of Spain.
The model answers one question at a time, and the user corrects the answer token by token until the whole answer is right.
A sentence ends with a point . A question ends with a mark ? An order ends with another mark ! A list has a comma , and a colon : too.
def answer(question: str) -> list[int]: return [len(word) for word in question.split(" ") if word != "" and word[0] == '_'] # comment
{"name": "value", "list": [1, 2, 3], "path": "C:\\\\temp/x", "sum": 1 + 2 * 3 / 4 % 5 ^ 6 & 7 | 8 ~ `9` @ $ <tag> </tag> <|x|> [INST]}
Le café est fermé à midi, où êtes-vous allé? Größe, Straße, über, schön. El niño está aquí mañana. Добрый день, как дела? Γεια σου κόσμε.
我 是 一 个 助 手 ， 你 的 名 字 是 什 么 ？ 我 不 知 道 。 中 国 的 首 都 是 北 京 。 我是一个助手，你的名字是什么？我不知道。
what when where which who why how the a an of to in on at by for with from and or but not is are was were be been do does did have has had
"""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # what SentencePiece writes for a character that its vocabulary lacks
SPLIT_LLAMA3 = SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
ASCII = [chr(code) for code in range(ord("!"), ord("~") + 1)]  # single characters that every vocabulary has
# What ByteLevel(use_regex=True) has inside.
SPLIT_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

LLAMA2_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'].strip() + '\n<</SYS>>\n\n' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + message['content']|trim + eos_token }}"
    "{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)
# Gemma names the assistant "model", takes no system message, and ends a turn with another token than its eos_token.
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' + message['content']|trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content']|trim "
    "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
T5_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + (eos_token if message['role'] == 'assistant' else ' ') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
BERT_TEMPLATE = "{{ '[CLS]' }}{% for message in messages %}{{ ' ' + message['content'] + ' [SEP]' }}{% endfor %}"


class Learned(NamedTuple):
    """What a BPE trainer found: its tokens, characters first, and the merges that make the others."""

    tokens: list[str]
    merges: list[Any]  # pairs of tokens, which transformers' annotations do not know

    def vocabulary(self, before: Sequence[str] = ()) -> dict[str, int]:
        return {token: id_ for id_, token in enumerate([*before, *self.tokens])}


def _learn(lines: list[str], size: int, split: pre_tokenizers.PreTokenizer, alphabet: list[str]) -> Learned:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet))
    model = json.loads(tokenizer.to_str())["model"]
    return Learned(sorted(model["vocab"], key=model["vocab"].__getitem__), [(left, right) for left, right in model["merges"]])


@cache
def _byte_level(pattern: str) -> Learned:
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return _learn(TEXT.splitlines(keepends=True), 600, split, sorted(byte_characters().values()))


@cache
def _sentencepiece() -> Learned:
    """Characters and words with "▁" for the space. No newline and no tab: Llama and Mistral write them as bytes."""
    learned = _learn(TEXT.splitlines(), 600, pre_tokenizers.Metaspace(prepend_scheme="always"), ASCII)
    runs = [("▁" * half, "▁" * half) for half in (1, 2, 4)]
    return Learned(learned.tokens + [left + right for left, right in runs], learned.merges + runs)


@cache
def _unigram_pieces() -> list[tuple[str, float]]:
    """Every character, and the commonest parts of words, with the logarithm of their share.

    Counted and not trained: the order, and so the ids, that the trainer gives is not the same on every run.
    """
    counts: Counter[str] = Counter(ASCII)
    for word, count in Counter(TEXT.split()).items():
        spelled = "▁" + word
        for start in range(len(spelled)):
            for end in range(start + 1, min(len(spelled), start + 9) + 1):
                counts[spelled[start:end]] += count
    longer = sorted((piece for piece in counts if len(piece) > 1), key=lambda piece: (-(len(piece) - 1) * counts[piece], piece))[:400]
    total = counts.total()
    return [(piece, math.log(counts[piece] / total)) for piece in [*sorted(piece for piece in counts if len(piece) == 1), *longer]]


def _with_bos(bos: str, id_: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, id_)])


def _bytes_decoder(*last: decoders.Decoder) -> decoders.Sequence:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])


def make_byte_bpe() -> PreTrainedTokenizerBase:
    """Qwen2 and Qwen3: NFC, and tokens such as <think> that are added but not special."""
    learned = _byte_level(SPLIT)
    tokenizer = Qwen2Tokenizer(vocab=learned.vocabulary(), merges=learned.merges, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                               additional_special_tokens=["<|im_start|>", "<|im_end|>"], chat_template=CHAT_TEMPLATE,
                               clean_up_tokenization_spaces=False)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ("<think>", "</think>", "<tool_call>")])
    return tokenizer


def make_gpt2() -> PreTrainedTokenizerBase:
    """GPT-2: a base model's tokenizer, without a template and with one special token for everything."""
    learned = _byte_level(SPLIT_GPT2)
    return GPT2Tokenizer(vocab=learned.vocabulary(["<|endoftext|>"]), merges=learned.merges, pad_token="<|endoftext|>",
                         clean_up_tokenization_spaces=False)


def make_llama2() -> PreTrainedTokenizerBase:
    """Llama 2's tokenizer.json as it was published. LlamaTokenizer would put Metaspace in the place of its normalizer."""
    learned = _sentencepiece()
    vocabulary = learned.vocabulary(["<unk>", "<s>", "</s>", *BYTES])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=learned.merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = _bytes_decoder(decoders.Strip(" ", 1, 0))
    tokenizer.post_processor = _with_bos("<s>", vocabulary["<s>"])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>",
                                   chat_template=LLAMA2_TEMPLATE, clean_up_tokenization_spaces=False)


def make_mistral() -> PreTrainedTokenizerBase:
    """Mistral v0.3, and what transformers makes of every LlamaTokenizer: a space before the first word only."""
    learned = _sentencepiece()
    vocabulary = learned.vocabulary(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *BYTES])
    return LlamaTokenizer(vocab=vocabulary, merges=learned.merges, pad_token="<unk>", additional_special_tokens=["[INST]", "[/INST]"],
                          add_bos_token=True, chat_template=MISTRAL_TEMPLATE)


def make_gemma() -> PreTrainedTokenizerBase:
    """Gemma: no space before the first word; runs of newlines and of spaces are tokens, added but not special."""
    learned = _sentencepiece()
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    runs = [character * count for character in "\n▁" for count in (2, 3)]
    merges: list[Any] = [("\n", "\n"), ("\n\n", "\n"), ("▁▁", "▁")]
    known = set(learned.tokens)
    own = [token for token in ["\n", "\t", *runs] if token not in known]
    tokenizer = GemmaTokenizer(vocab=learned.vocabulary([*specials, *BYTES, *own]), merges=merges + learned.merges,
                               additional_special_tokens=specials[5:], add_bos_token=True, chat_template=GEMMA_TEMPLATE,
                               clean_up_tokenization_spaces=False)
    tokenizer.add_tokens([AddedToken(run, normalized=False, special=False) for run in runs])
    return tokenizer


def make_unigram() -> PreTrainedTokenizerBase:
    """T5 and its like: compatibility forms are folded, and what is not in the vocabulary is <unk>."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *_unigram_pieces()]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<pad>", "</s>", "<unk>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>",
                                   chat_template=T5_TEMPLATE, clean_up_tokenization_spaces=False)


def make_unigram_bytes() -> PreTrainedTokenizerBase:
    """A Unigram model that writes every text: bytes for what its vocabulary lacks, and nothing folded."""
    # SentencePiece gives its control and byte tokens the score 0, better than any word's.
    vocabulary = [(token, 0.0) for token in ["<unk>", "<s>", "</s>", *BYTES]] + _unigram_pieces()
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = _bytes_decoder(decoders.Strip(" ", 1, 0))
    tokenizer.post_processor = _with_bos("<s>", 1)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
                                   chat_template=ZEPHYR_TEMPLATE, clean_up_tokenization_spaces=False)


def make_wordpiece() -> PreTrainedTokenizerBase:
    """BERT: lower case, no accents, and no white space in any token."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = Counter(word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(TEXT)))
    characters = sorted({character for word in words for character in word})
    common = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word] * len(word), word))[:250]
    endings = sorted({"##" + word[-length:] for word in common for length in (2, 3) if len(word) > length})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *("##" + character for character in characters), *common, *endings]
    return BertTokenizer(vocab={token: id_ for id_, token in enumerate(tokens)}, do_lower_case=True, eos_token="[SEP]", bos_token="[CLS]",
                         chat_template=BERT_TEMPLATE, clean_up_tokenization_spaces=True)


def make_cleanup() -> PreTrainedTokenizerBase:
    """Llama 3, whose settings ask for the clean-up that takes the space out of "a ."; it does not normalise."""
    learned = _byte_level(SPLIT_LLAMA3)
    vocabulary = learned.vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=learned.merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT_LLAMA3), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _with_bos("<|begin_of_text|>", len(vocabulary))
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    # transformers 5 cleans up behind BPE only where the second setting asks for it too; before, the first was enough.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|end_of_text|>",
                                   chat_template=LLAMA3_TEMPLATE, clean_up_tokenization_spaces=True,
                                   clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True)


def load_real_qwen2() -> PreTrainedTokenizerBase | None:
    """Qwen2's own tokenizer, where it lies beside the repository."""
    folder = Path(__file__).parent.parent.parent / "shared" / "tokenizers" / "qwen2"
    if not folder.is_dir():
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


ZOO: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte": make_byte_tokenizer,
    "byte_bpe": make_byte_bpe,
    "gpt2": make_gpt2,
    "llama2": make_llama2,
    "mistral": make_mistral,
    "gemma": make_gemma,
    "unigram": make_unigram,
    "unigram_bytes": make_unigram_bytes,
    "wordpiece": make_wordpiece,
    "cleanup": make_cleanup,
}
LOSSY = frozenset({"unigram", "wordpiece"})  # they cannot write every Unicode text
END_TOKENS = {"gemma": ("<eos>", "<end_of_turn>")}  # end-of-turn tokens that the model's generation config names; elsewhere the eos_token
