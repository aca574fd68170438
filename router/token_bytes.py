"""What each token id stands for, as bytes of text.

A tokenizer's decoder is read once from its JSON and turned into a rule "token -> bytes", so that
text can be put together token by token. Three kinds are known, which cover the Llama family and
small test models: ``ByteLevel`` (GPT-2, Llama 3, SmolLM2), byte fallback with ``▁`` for spaces
(SentencePiece: Llama 2, Mistral), and no decoder (tokens joined with spaces). Another kind is
refused by name when the model is loaded. This module does not know how bytes become characters
(detokenizer.py). Not covered: decoders that clean up text after joining it (WordPiece, CTC).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from pdserve.errors import ModelFileError

_SPACE_MARK = "\u2581"  # SentencePiece's visible space


class TokenBytes:
    """Bytes of every token id, worked out when first asked for.

    ``num_leading_spaces`` is how many spaces the decoder drops from the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ModelFileError if the tokenizer's decoder is of an unknown kind."""
        self._tokenizer = tokenizer
        decoder = json.loads(tokenizer.to_str())["decoder"]
        self._to_bytes, self.num_leading_spaces = _read_decoder(decoder)
        self._special_ids = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._cache: dict[int, bytes] = {}

    def text_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text: nothing for special and unknown tokens."""
        found = self._cache.get(token_id)
        if found is None:
            found = b"" if token_id in self._special_ids else self.token_bytes(token_id)
            self._cache[token_id] = found
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for, special ones by their name; nothing for unknown ids."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        return token.encode() if token_id in self._special_ids else self._to_bytes(token)


_Rule = tuple[Callable[[str], bytes], int]


def _read_decoder(decoder: dict[str, Any] | None) -> _Rule:
    """(token -> bytes, number of leading spaces dropped) of a tokenizer.json ``decoder``."""
    if decoder is None:
        return lambda token: b" " + token.encode(), 1
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps if step["type"] != "Fuse"]
    if kinds == ["ByteLevel"]:
        return _byte_level_rule(), 0
    if kinds == ["Metaspace"]:
        mark, keeps = steps[0]["replacement"], steps[0].get("prepend_scheme") == "never"
        return lambda token: token.replace(mark, " ").encode(), 0 if keeps else 1
    if kinds in (["Replace", "ByteFallback"], ["Replace", "ByteFallback", "Strip"]):
        return _byte_fallback_rule(steps)
    raise ModelFileError(f"tokenizer.json: decoder {'+'.join(kinds)} is not supported")


def _byte_level_rule() -> Callable[[str], bytes]:
    """GPT-2's table of one visible character for each byte, read backwards."""
    byte_of = {char: value for value, char in enumerate(_byte_level_alphabet())}

    def to_bytes(token: str) -> bytes:
        try:
            return bytes([byte_of[char] for char in token])
        except KeyError:  # an added token, kept as it is written
            return token.encode()

    return to_bytes


def _byte_level_alphabet() -> list[str]:
    """The character of byte 0, 1, ... 255: printable bytes stand for themselves, others move up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = (value for value in range(256) if value not in printable)
    shifted = {value: chr(256 + rank) for rank, value in enumerate(moved)}
    alphabet = [shifted.get(value, chr(value)) for value in range(256)]
    assert sorted(alphabet) == sorted(ByteLevel.alphabet())
    return alphabet


def _byte_fallback_rule(steps: list[dict[str, Any]]) -> _Rule:
    replace = next(step for step in steps if step["type"] == "Replace")
    no_strip: dict[str, Any] = {"content": " ", "start": 0, "stop": 0}
    strip = next((step for step in steps if step["type"] == "Strip"), no_strip)
    old, new = replace["pattern"].get("String"), replace["content"]
    if old is None or strip["content"] != " " or strip["stop"]:
        raise ModelFileError("tokenizer.json: decoder Replace or Strip is not of the known form")

    def to_bytes(token: str) -> bytes:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return token.replace(old, new).encode()

    return to_bytes, int(strip["start"])
