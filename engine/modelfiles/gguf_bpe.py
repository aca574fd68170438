"""Byte-level BPE from GGUF metadata (``tokenizer.ggml.model`` gpt2).

GGUF names how text is cut before BPE (``tokenizer.ggml.pre``) instead of carrying the rule. The
rules here are those of the tokenizers the names stand for (each in its tokenizer.json), so text
gives the ids the model was trained on; where llama.cpp's own rule is only an approximation (tekken)
or leaves a step out (Qwen2's NFC), the original is used. Other names are refused. Not covered: the
names of families that are not served.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.gguf_token_lists import MERGES_KEY, PRE_KEY, TOKENS_KEY, string_list

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_WORDS = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2_WORDS = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# llama.cpp's rule for files that name none: punctuation first, then GPT-2's words, then digits in
# threes. Applied one after the other, each to the pieces the ones before left.
_DEFAULT_CUTS = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """What a name stands for. ``end_tokens``: ends of a chat that the metadata need not name."""

    cuts: tuple[str, ...]
    ignores_merges: bool = False  # a piece that is a token is not built from merges
    adds_bos: bool = False  # where the file does not say
    is_nfc: bool = False
    end_tokens: tuple[str, ...] = ()


_LLAMA3_ENDS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
_LLAMA3 = PreTokenizer((_LLAMA3_WORDS,), True, True, end_tokens=_LLAMA3_ENDS)
_QWEN2 = PreTokenizer((_QWEN2_WORDS,), is_nfc=True, end_tokens=("<|im_end|>", "<|endoftext|>"))
_GPT2 = PreTokenizer((_GPT2_WORDS,))
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": PreTokenizer((_LLAMA3_WORDS,), end_tokens=("<|im_end|>", "<|endoftext|>")),  # Phi-4
    "smaug-bpe": PreTokenizer((_LLAMA3_WORDS,), end_tokens=_LLAMA3_ENDS),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": PreTokenizer((_QWEN2_WORDS,)),
    "tekken": PreTokenizer((_TEKKEN_WORDS,), True, True),  # Mistral Nemo and later
    "smollm": PreTokenizer((r"\p{N}", _GPT2_WORDS)),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "default": PreTokenizer(_DEFAULT_CUTS),
}


def read_pre_tokenizer(fields: FieldReader) -> PreTokenizer:
    """Raises ModelFileError: a name that is not known."""
    name = fields.text(PRE_KEY, "default")
    if name not in PRE_TOKENIZERS:
        raise fields.error(PRE_KEY, f"{name!r}; of {sorted(PRE_TOKENIZERS)} only")
    return PRE_TOKENIZERS[name]


def read_bpe(fields: FieldReader, tokens: list[str]) -> Tokenizer:
    """Without the tokens that are matched whole.

    Raises:
        ModelFileError: another pre-tokenizer, or lists that do not fit together.
    """
    pre = read_pre_tokenizer(fields)
    tokenizer = Tokenizer(_read_model(fields, tokens, ignore_merges=pre.ignores_merges))
    if pre.is_nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.cuts]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_model(fields: FieldReader, tokens: list[str], *, ignore_merges: bool) -> models.BPE:
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        repeated = next(token for token_id, token in enumerate(tokens) if vocab[token] != token_id)
        raise fields.error(TOKENS_KEY, f"{repeated!r} is there twice")
    merges: list[tuple[str, str]] = []
    for merge in string_list(fields, MERGES_KEY):
        # Byte-level tokens hold no space, but the first character may be anything.
        left, _, right = merge[1:].partition(" ")
        left = merge[:1] + left
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise fields.error(MERGES_KEY, f"{merge!r} is not made of tokens")
        merges.append((left, right))
    return models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
