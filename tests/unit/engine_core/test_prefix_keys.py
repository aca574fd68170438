"""Names of content: what makes two blocks the same, and that nothing else does."""

from __future__ import annotations

import struct

import pytest
import xxhash

from pdserve.prefix_keys import KeyChain, PrefixKeys

TOKENS = list(range(100, 112))


def chain(fingerprint: str = "model", salt: str = "", block_size: int = 4) -> KeyChain:
    return PrefixKeys(fingerprint, block_size).chain(salt)


def test_the_digest_is_the_one_of_the_protocol() -> None:
    """docs/protocol.md 8, computed by hand: other programs must get the same."""
    root = xxhash.xxh3_128_digest(b"pdserve-prefix-1\0model\0tenant")
    first = xxhash.xxh3_128_digest(root + struct.pack("<4I", 100, 101, 102, 103))
    second = xxhash.xxh3_128_digest(first + struct.pack("<4I", 104, 105, 106, 107))
    assert [key.digest for key in chain(salt="tenant").keys(TOKENS, 2)] == [first, second]


def test_equal_contexts_have_equal_keys_however_they_grew() -> None:
    at_once = chain().keys(TOKENS, 3)
    growing = chain()
    assert list(growing.keys(TOKENS[:5], 1)) == list(at_once[:1])
    assert list(growing.keys(TOKENS, 3)) == list(at_once)


@pytest.mark.parametrize("position", range(12))
def test_one_other_token_changes_its_block_and_all_after_it(position: int) -> None:
    other = TOKENS.copy()
    other[position] += 1
    pairs = list(zip(chain().keys(TOKENS, 3), chain().keys(other, 3), strict=True))
    assert [mine == theirs for mine, theirs in pairs] == [i < position // 4 for i in range(3)]


@pytest.mark.parametrize(
    "other", [chain("model2"), chain(salt="tenant"), chain(salt=" "), chain(block_size=2)]
)
def test_another_model_salt_or_block_size_shares_nothing(other: KeyChain) -> None:
    assert not set(other.keys(TOKENS, 3)) & set(chain().keys(TOKENS, 3))


def test_equal_digests_of_unequal_tokens_are_no_hit() -> None:
    key = chain().keys(TOKENS, 1)[0]
    assert key != key._replace(token_bytes=bytes(16))
