"""SentencePiece's BPE from GGUF metadata (``tokenizer.ggml.model`` llama): Llama 2, Mistral, Phi-3.

The file has a score for each token and no merges: the pair whose union scores best is merged first.
The same order is written down as merges for ``tokenizers``, as Hugging Face's converter does.
Characters that no token holds become byte tokens. Not covered: SentencePiece's unigram models
(``t5``), text normalisation other than the space in front.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers

from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.gguf_token_lists import TokenType, token_scores, token_types

_SPACE = "\u2581"
_KEY = "tokenizer.ggml."
_MERGED_TYPES = frozenset({TokenType.NORMAL, TokenType.USER_DEFINED})


def read_spm(fields: FieldReader, tokens: list[str]) -> Tokenizer:
    """Without the tokens that are matched whole.

    Raises:
        ModelFileError: lists that do not fit together, or normalisation that is not supported.
    """
    fields.refuse_unless({_KEY + "remove_extra_whitespaces": (False,)}, "is not supported")
    fields.refuse_unless({_KEY + "precompiled_charsmap": ([],)}, "is not supported")
    types = token_types(fields, len(tokens))
    scores = token_scores(fields, len(tokens))
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == 2), None)
    # Fillers may share a text; the first of them keeps it.
    vocab: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        vocab.setdefault(token, token_id)
    has_bytes = TokenType.BYTE in types
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(vocab, types, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    )
    adds_space = fields.flag(_KEY + "add_space_prefix", True)
    prefix = [normalizers.Prepend(_SPACE)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(vocab: dict[str, int], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Pairs of tokens whose union is a token, the best union first.

    Of several pairs for one union, the one whose left part was learned first.
    """
    mergeable = {token for token, token_id in vocab.items() if types[token_id] in _MERGED_TYPES}
    found: list[tuple[float, int, int, str, str]] = []
    for token in mergeable:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in mergeable and right in mergeable:
                found.append((-scores[vocab[token]], vocab[left], vocab[right], left, right))
    found.sort(key=lambda pair: pair[:3])
    return [(left, right) for *_, left, right in found]
