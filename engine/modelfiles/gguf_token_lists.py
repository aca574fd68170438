"""The token lists of GGUF metadata, typed: tokens, their types and scores.

Types are llama.cpp's: what a token is matched as. Knows nothing of the algorithms.
"""

from __future__ import annotations

from enum import IntEnum

from engine.modelfiles.field_reader import FieldReader

_KEY = "tokenizer.ggml."
TOKENS_KEY = _KEY + "tokens"
MERGES_KEY = _KEY + "merges"
PRE_KEY = _KEY + "pre"
_TYPES_KEY = _KEY + "token_type"
_SCORES_KEY = _KEY + "scores"


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def string_list(fields: FieldReader, name: str) -> list[str]:
    value = fields.values.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise fields.error(name, "missing" if value is None else "must be a list of text")
    return value


def token_types(fields: FieldReader, num_tokens: int) -> list[int]:
    """One a token; all normal if the file has none."""
    types = fields.values.get(_TYPES_KEY)
    if types is None:
        return [TokenType.NORMAL] * num_tokens
    if not isinstance(types, list) or len(types) != num_tokens:
        raise fields.error(_TYPES_KEY, f"must be a list of {num_tokens} numbers")
    return types


def token_scores(fields: FieldReader, num_tokens: int) -> list[float]:
    """One a token; the file must have them."""
    scores = fields.values.get(_SCORES_KEY)
    is_right = isinstance(scores, list) and len(scores) == num_tokens
    if not is_right or any(isinstance(score, str) for score in scores or ()):
        raise fields.error(_SCORES_KEY, f"must be a list of {num_tokens} numbers")
    assert isinstance(scores, list)
    return [float(score) for score in scores]
