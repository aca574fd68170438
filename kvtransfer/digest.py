"""Checksums of KV: one a frame (xxh3_64), one over a whole read (xxh3_128).

Method: xxHash 3, github.com/Cyan4973/xxHash. Guards against corruption and mix-ups, not against
a peer that means harm.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash


class PayloadChecksum:
    """xxh3_64 of pieces one after another, unsigned."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_64()

    def add(self, piece: memoryview) -> None:
        self._hasher.update(piece)

    @property
    def value(self) -> int:
        return self._hasher.intdigest()


def payload_checksum(pieces: Iterable[memoryview]) -> int:
    checksum = PayloadChecksum()
    for piece in pieces:
        checksum.add(piece)
    return checksum.value


class ReadDigest:
    """Digest of one KV read: the frames' checksums in order of ``seq``, then the token count."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_128()
        self.num_frames = 0

    def add(self, checksum: int) -> None:
        self._hasher.update(checksum.to_bytes(8, "little"))
        self.num_frames += 1

    def value(self, num_tokens: int) -> bytes:
        """16 bytes; does not end the digest."""
        whole = self._hasher.copy()
        whole.update(num_tokens.to_bytes(8, "little"))
        return whole.digest()
