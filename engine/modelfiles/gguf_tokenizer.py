"""A ``tokenizers`` tokenizer from GGUF metadata: what all kinds have in common.

    tokenizer.ggml.model = gpt2     byte-level BPE (gguf_bpe.py)
    tokenizer.ggml.model = llama    SentencePiece's BPE (gguf_spm.py)

Not covered: other kinds (bert, t5, rwkv); refused by name.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer

from engine.modelfiles.checkpoint import TextPart
from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.gguf_bpe import read_bpe, read_pre_tokenizer
from engine.modelfiles.gguf_spm import read_spm
from engine.modelfiles.gguf_token_lists import TOKENS_KEY, TokenType, string_list, token_types

_KEY = "tokenizer.ggml."
_SPECIAL_TYPES = frozenset({TokenType.UNKNOWN, TokenType.CONTROL})  # left out of decoded text
# Ends of a chat in files of these architectures, which need not name them.
_PHI3_ENDS = ("<|end|>", "<|endoftext|>")
_PHI3_KEEPS_SPACE = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def read_gguf_text(fields: FieldReader) -> tuple[TextPart, Tokenizer]:
    """``fields`` is the file's metadata.

    Raises:
        ModelFileError: another tokenizer model or pre-tokenizer, or lists that do not fit together.
    """
    model = fields.text(_KEY + "model")
    tokens = string_list(fields, TOKENS_KEY)
    if model == "gpt2":
        pre = read_pre_tokenizer(fields)
        tokenizer, adds_bos, end_tokens = read_bpe(fields, tokens), pre.adds_bos, pre.end_tokens
        default_ids = {}
    elif model == "llama":
        tokenizer, adds_bos, end_tokens = read_spm(fields, tokens), True, ()
        default_ids = {"bos_token_id": 1, "eos_token_id": 2}
    else:
        raise fields.error(_KEY + "model", f"{model!r}; 'gpt2' and 'llama' are supported")
    is_phi3 = fields.values.get("general.architecture") == "phi3" and model == "llama"
    _add_whole_tokens(fields, tokenizer, tokens, is_phi3=is_phi3)
    if fields.flag(_KEY + "add_eos_token", False):
        raise fields.error(_KEY + "add_eos_token", "prompts that end with eos are not supported")
    ids = {
        name: fields.token_id(_KEY + name) if fields.has(_KEY + name) else default_ids.get(name)
        for name in ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id")
    }
    bos = ids.pop("bos_token_id")
    ends = [*ids.values(), *map(tokenizer.token_to_id, _PHI3_ENDS if is_phi3 else end_tokens)]
    text = TextPart(
        tokenizer_json=tokenizer.to_str(),
        chat_template=fields.text("tokenizer.chat_template", "") or None,
        bos_token_id=bos,
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        adds_bos=fields.flag(_KEY + "add_bos_token", adds_bos),
    )
    return text, tokenizer


def _add_whole_tokens(
    fields: FieldReader, tokenizer: Tokenizer, tokens: list[str], *, is_phi3: bool
) -> None:
    """Tokens that are matched in the text before it is cut.

    Phi-3's swallow the spaces after them, which GGUF does not say; llama.cpp knows it too.
    """
    types = token_types(fields, len(tokens))
    added = [
        AddedToken(
            token,
            special=kind in _SPECIAL_TYPES,
            normalized=False,
            rstrip=is_phi3 and token not in _PHI3_KEEPS_SPACE,
        )
        for token, kind in zip(tokens, types, strict=True)
        if kind in _SPECIAL_TYPES or kind == TokenType.USER_DEFINED
    ]
    tokenizer.add_tokens(added)
