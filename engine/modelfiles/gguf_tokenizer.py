"""A ``tokenizers`` tokenizer from GGUF metadata: byte-level BPE (``tokenizer.ggml.model`` gpt2).

GGUF names how text is cut before BPE (``tokenizer.ggml.pre``) instead of carrying the rule; the
rules here are those of llama.cpp for the names that Llama models use, any other name is refused.
Not covered: sentencepiece vocabularies (``tokenizer.ggml.model = llama``).
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from engine.modelfiles.checkpoint import TextPart
from engine.modelfiles.field_reader import FieldReader
from pdserve.errors import ModelFileError

_KEY = "tokenizer.ggml."
_LLAMA3_NAMES = frozenset({"llama-bpe", "llama3", "llama-v3"})
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# llama.cpp's rule for files that name none: punctuation first, then GPT-2's words, then digits in
# threes. Applied one after the other, each to the pieces the ones before left.
_DEFAULT_CUTS = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")

# Llama 3 files name one end token in their metadata; a chat ends with any of these.
_LLAMA3_END_TOKENS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
_CONTROL_TYPES = frozenset({2, 3})  # unknown, control: special, left out of decoded text
_USER_DEFINED_TYPE = 4  # matched whole in text, shown in decoded text


def read_gguf_text(fields: FieldReader) -> tuple[TextPart, Tokenizer]:
    """``fields`` is the file's metadata.

    Raises:
        ModelFileError: another tokenizer model or pre-tokenizer, or lists that do not fit together.
    """
    model = fields.text(_KEY + "model")
    if model != "gpt2":
        raise fields.error(_KEY + "model", f"{model!r}; only 'gpt2' (byte-level BPE) is supported")
    pre = fields.text(_KEY + "pre", "default")
    tokens = _string_list(fields, _KEY + "tokens")
    tokenizer = Tokenizer(_read_bpe(fields, tokens, ignore_merges=pre in _LLAMA3_NAMES))
    tokenizer.pre_tokenizer = _pre_tokenizer(fields, pre)
    tokenizer.decoder = decoders.ByteLevel()
    _add_whole_tokens(fields, tokenizer, tokens)
    if fields.flag(_KEY + "add_eos_token", False):
        raise fields.error(_KEY + "add_eos_token", "prompts that end with eos are not supported")
    template = fields.text("tokenizer.chat_template", "")
    text = TextPart(
        tokenizer_json=tokenizer.to_str(),
        chat_template=template or None,
        bos_token_id=fields.token_id(_KEY + "bos_token_id"),
        eos_token_ids=_eos_token_ids(fields, tokenizer, pre),
        adds_bos=fields.flag(_KEY + "add_bos_token", pre in _LLAMA3_NAMES),
    )
    return text, tokenizer


def _read_bpe(fields: FieldReader, tokens: list[str], *, ignore_merges: bool) -> models.BPE:
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        repeated = next(token for token_id, token in enumerate(tokens) if vocab[token] != token_id)
        raise fields.error(_KEY + "tokens", f"{repeated!r} is there twice")
    merges: list[tuple[str, str]] = []
    for merge in _string_list(fields, _KEY + "merges"):
        # Byte-level tokens hold no space, but the first character may be anything.
        left, _, right = merge[1:].partition(" ")
        left = merge[:1] + left
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise fields.error(_KEY + "merges", f"{merge!r} is not made of tokens")
        merges.append((left, right))
    return models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)


def _pre_tokenizer(fields: FieldReader, pre: str) -> pre_tokenizers.PreTokenizer:
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in _LLAMA3_NAMES:
        return _cuts(_LLAMA3_WORDS)
    if pre == "default":
        return _cuts(*_DEFAULT_CUTS)
    known = sorted({"default", "gpt-2", "smollm", *_LLAMA3_NAMES})
    raise fields.error(_KEY + "pre", f"{pre!r}; of {known} only")


def _cuts(*patterns: str) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_bytes])


def _add_whole_tokens(fields: FieldReader, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Tokens that are matched in the text before it is cut."""
    types = fields.values.get(_KEY + "token_type")
    if types is None:
        return
    if not isinstance(types, list) or len(types) != len(tokens):
        raise fields.error(_KEY + "token_type", f"must be a list of {len(tokens)} numbers")
    added = [
        AddedToken(token, special=kind in _CONTROL_TYPES, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in _CONTROL_TYPES or kind == _USER_DEFINED_TYPE
    ]
    tokenizer.add_tokens(added)


def _eos_token_ids(fields: FieldReader, tokenizer: Tokenizer, pre: str) -> tuple[int, ...]:
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [fields.token_id(_KEY + name) for name in names]
    if pre in _LLAMA3_NAMES:
        ids += [tokenizer.token_to_id(token) for token in _LLAMA3_END_TOKENS]
    return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def _string_list(fields: FieldReader, name: str) -> list[str]:
    value = fields.values.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        problem = "missing" if value is None else "must be a list of text"
        raise ModelFileError(f"{fields.where}: field {name}: {problem}")
    return value
