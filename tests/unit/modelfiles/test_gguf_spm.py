"""SentencePiece's BPE from GGUF metadata, against the algorithm written out plainly."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine.modelfiles.checkpoint import TextPart
from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.gguf_tokenizer import read_gguf_text
from pdserve.errors import ModelFileError
from router.detokenizer import Detokenizer
from router.token_bytes import TokenBytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ALPHABET = "\u2581abcde\u00e9"
FIRST_PIECE = 3 + 256


def pieces() -> list[str]:
    """Best first, as SentencePiece learns them; then the characters."""
    rng = random.Random(7)
    learned = [*ALPHABET]
    while len(learned) < 120:
        union = rng.choice(learned) + rng.choice(learned)
        if union not in learned and len(union) <= 6:
            learned.append(union)
    return [*learned[len(ALPHABET) :], *ALPHABET]


def keys(**changes: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces()]
    tokens += ["<|user|>", "[TOOL]", "unused"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces())]
    types += [CONTROL, USER_DEFINED, UNUSED]
    scores = [0.0] * FIRST_PIECE + [-float(i) for i in range(len(pieces()))] + [-1000.0] * 3
    document = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores}
    return {f"tokenizer.ggml.{name}": value for name, value in {**document, **changes}.items()}


def read(architecture: str = "llama", **changes: Any) -> TextPart:
    fields = {"general.architecture": architecture, **keys(**changes)}
    return read_gguf_text(FieldReader("x.gguf", fields))[0]


def encode(text: str, architecture: str = "llama", **changes: Any) -> list[int]:
    tokenizer = Tokenizer.from_str(read(architecture, **changes).tokenizer_json)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def plain_ids(text: str) -> list[int]:
    """Merge the neighbours whose union scores best, the leftmost of several; bytes at the end."""
    scores = {piece: -rank for rank, piece in enumerate(pieces())}
    symbols = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        unions = [a + b for a, b in zip(symbols, symbols[1:], strict=False)]
        best = max((scores.get(union, -math.inf) for union in unions), default=-math.inf)
        if best == -math.inf:
            break
        at = next(i for i, union in enumerate(unions) if scores.get(union) == best)
        symbols[at : at + 2] = [unions[at]]
    ids: list[int] = []
    for symbol in symbols:
        if symbol in scores:
            ids.append(FIRST_PIECE - scores[symbol])
        else:
            ids += [3 + byte for byte in symbol.encode()]
    return ids


def test_hundreds_of_texts_against_the_plain_algorithm() -> None:
    tokenizer = Tokenizer.from_str(read().tokenizer_json)
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choices("abcde\u00e9 \n\u4f60", [4, 4, 4, 4, 4, 2, 4, 1, 1], k=40))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == plain_ids(text)
        assert tokenizer.decode(ids) == text


def test_the_router_can_stream_its_text() -> None:
    """Token by token, with characters that are several byte tokens."""
    tokenizer = Tokenizer.from_str(read().tokenizer_json)
    text = "ab  cd \u4f60\u597d \u00e9\n"
    detokenizer = Detokenizer(TokenBytes(tokenizer), continues=False)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(detokenizer.push(token_id) for token_id in ids) + detokenizer.finish() == text


def test_what_the_file_need_not_say() -> None:
    text = read()
    assert (text.bos_token_id, text.eos_token_ids, text.adds_bos) == (1, (2,), True)
    text = read(bos_token_id=5, eos_token_id=7, eot_token_id=8, add_bos_token=False)
    assert (text.bos_token_id, text.eos_token_ids, text.adds_bos) == (5, (7, 8), False)


def test_the_space_in_front() -> None:
    assert encode("b", add_space_prefix=False) == [FIRST_PIECE + pieces().index("b")]
    assert encode("b") == plain_ids("b")
    assert encode("") == []


def test_special_tokens_are_matched_whole_and_text_after_them_starts_anew() -> None:
    user, tool = FIRST_PIECE + len(pieces()), FIRST_PIECE + len(pieces()) + 1
    ids = encode("<s>ab<|user|>cd[TOOL] e</s>")
    expected = [1, *plain_ids("ab"), user, *plain_ids("cd"), tool, *plain_ids(" e"), 2]
    assert ids == expected
    tokenizer = Tokenizer.from_str(read().tokenizer_json)
    assert "[TOOL]" in tokenizer.decode(ids)
    assert "<|user|>" not in tokenizer.decode(ids)


def test_phi3_tokens_swallow_spaces_behind_them() -> None:
    user = FIRST_PIECE + len(pieces())
    assert encode("<|user|>\n ab", "phi3") == [user, *plain_ids("ab")]
    assert encode("<s> ab", "phi3") == [1, *plain_ids(" ab")]
    assert encode("<|user|> ab") == [user, *plain_ids(" ab")]


def test_names_of_bytes_and_unused_tokens_are_plain_text() -> None:
    assert 3 + 10 not in encode("<0x0A>")
    assert FIRST_PIECE + len(pieces()) + 2 not in encode("unused")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("scores", None, "must be a list of 382 numbers"),
        ("scores", [1.0], "must be a list of 382 numbers"),
        ("scores", ["1.0"] * 382, "must be a list of 382 numbers"),
        ("token_type", [1], "must be a list of 382 numbers"),
        ("remove_extra_whitespaces", True, "not supported"),
        ("precompiled_charsmap", [1, 2], "not supported"),
        ("add_space_prefix", 1, "not true or false"),
        ("add_eos_token", True, "not supported"),
    ],
)
def test_what_is_refused_by_name(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ModelFileError, match=rf"field tokenizer\.ggml\.{name}: .*{problem}"):
        read(**{name: value})
