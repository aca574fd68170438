"""Names for the content of full KV blocks: one digest a block, chained over everything before it.

    root = xxh3_128(version, model fingerprint, cache salt)
    digest[i] = xxh3_128(digest[i - 1], token ids of block i)

Equal keys mean equal tokens from the start, model, dtype and salt, hence equal KV (kernels do not
depend on how a context was cut; docs/architecture.md). Every worker and the router make the same
digests. Chained block hashes: vLLM's automatic prefix caching, SGLang's RadixAttention
(arXiv 2312.07104) keeps a tree instead. XXH3 is not cryptographic, so a key carries the block's own
token ids and equality compares them too; a digest alone proves nothing to a tenant who wants it to.

Knows neither blocks nor workers. Not covered: images, adapters (they would join the root).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

_VERSION = b"pdserve-prefix-1"


HASH_BYTES = 8


class BlockKey(NamedTuple):
    digest: bytes  # 16 bytes
    token_bytes: bytes  # the block's own token ids, 4 bytes little-endian each

    @property
    def hash(self) -> bytes:
        """What workers and routers call it between them: a hint, which proves nothing."""
        return self.digest[:HASH_BYTES]


class KeyChain:
    """Keys of the full blocks of one list of token ids that may grow at its end."""

    __slots__ = ("_block_size", "_digest", "_keys")

    def __init__(self, root: bytes, block_size: int) -> None:
        self._digest = root  # of the last key, or the root
        self._block_size = block_size
        self._keys: list[BlockKey] = []

    def keys(self, token_ids: Sequence[int], num_blocks: int) -> Sequence[BlockKey]:
        """Keys of at least the first ``num_blocks`` blocks; all of those must be full.

        ``token_ids`` begins with what it was at earlier calls; nothing is hashed twice.
        """
        num_known, size = len(self._keys), self._block_size
        if num_known >= num_blocks:
            return self._keys
        new_ids = token_ids[num_known * size : num_blocks * size]
        packed, num_bytes = struct.pack(f"<{len(new_ids)}I", *new_ids), 4 * size
        for start in range(0, len(packed), num_bytes):
            token_bytes = packed[start : start + num_bytes]
            self._digest = xxhash.xxh3_128_digest(self._digest + token_bytes)
            self._keys.append(BlockKey(self._digest, token_bytes))
        return self._keys


class PrefixKeys:
    """Starts chains for one model (``fingerprint``: weights, tokenizer, dtype) and block size."""

    def __init__(self, fingerprint: str, block_size: int) -> None:
        self.block_size = block_size
        self._fingerprint = fingerprint.encode()

    def chain(self, cache_salt: str) -> KeyChain:
        parts = (_VERSION, self._fingerprint, cache_salt.encode())
        return KeyChain(xxhash.xxh3_128_digest(b"\0".join(parts)), self.block_size)
