"""Text put together token by token equals text decoded at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pdserve.errors import ModelFileError
from router.detokenizer import Detokenizer
from router.token_bytes import TokenBytes
from support.scripted_tokens import BOS, END, VOCAB_SIZE, WORD, byte_tokenizer

BYTE_TOKENIZER = byte_tokenizer()
BYTE_TOKENS = TokenBytes(BYTE_TOKENIZER)


def deltas(token_bytes: TokenBytes, token_ids: list[int], *, continues: bool = False) -> list[str]:
    detokenizer = Detokenizer(token_bytes, continues=continues)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.finish()]


token_id_lists = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40) | st.text().map(
    lambda text: list(text.encode())
)


@given(token_id_lists)
def test_deltas_add_up_to_the_whole(token_ids: list[int]) -> None:
    whole = BYTE_TOKENIZER.decode(token_ids, skip_special_tokens=True)
    assert "".join(deltas(BYTE_TOKENS, token_ids)) == whole


@given(st.text())
def test_valid_text_never_shows_a_replacement_character(text: str) -> None:
    pieces = deltas(BYTE_TOKENS, list(text.encode()))
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)  # one byte completes at most one character
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_waits_for_its_last_byte() -> None:
    assert deltas(BYTE_TOKENS, list("é".encode())) == ["", "é", ""]
    assert deltas(BYTE_TOKENS, list("🌊".encode())) == ["", "", "", "🌊", ""]


def test_an_incomplete_character_is_replaced_only_at_the_end() -> None:
    assert deltas(BYTE_TOKENS, list("🌊".encode())[:3]) == ["", "", "", "\ufffd"]


def test_special_and_unknown_tokens_add_nothing_and_added_words_are_kept() -> None:
    assert deltas(BYTE_TOKENS, [BOS, 72, END, WORD, 99_999]) == ["", "H", "", "new wörd", "", ""]
    assert BYTE_TOKENS.token_bytes(END) == b"<end>"
    assert BYTE_TOKENS.token_bytes(0xC3) == b"\xc3"


def sentencepiece_tokenizer() -> Tokenizer:
    pieces = ["<unk>", "▁the", "▁sea", "s", "▁", *(f"<0x{value:02X}>" for value in range(256))]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


SENTENCEPIECE = sentencepiece_tokenizer()
sentencepiece_words = st.lists(
    st.sampled_from([[1], [2], [3], [4]])
    | st.characters(codec="utf-8").map(lambda c: [5 + byte for byte in c.encode()])
)


@given(sentencepiece_words)
def test_byte_fallback_tokens_add_up_too(words: list[list[int]]) -> None:
    token_ids = [token_id for word in words for token_id in word]
    assert "".join(deltas(TokenBytes(SENTENCEPIECE), token_ids)) == SENTENCEPIECE.decode(token_ids)


def test_the_first_space_is_kept_where_a_text_goes_on() -> None:
    token_bytes = TokenBytes(SENTENCEPIECE)
    assert "".join(deltas(token_bytes, [1, 2, 3])) == "the seas"
    assert "".join(deltas(token_bytes, [1, 2, 3], continues=True)) == " the seas"


@given(st.lists(st.integers(0, 3)))
def test_without_a_decoder_tokens_are_joined_with_spaces(token_ids: list[int]) -> None:
    vocab = {"a": 0, "b": 1, "[UNK]": 2, "cd": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    whole = tokenizer.decode(token_ids)
    assert "".join(deltas(TokenBytes(tokenizer), token_ids)) == whole


def test_an_unknown_decoder_is_refused_by_name() -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelFileError, match="decoder WordPiece is not supported"):
        TokenBytes(tokenizer)
