"""Hashes of the full blocks of one request's context, made once and longer as it grows.

Workers of another model's fingerprint or block size name the same tokens otherwise, so there is a
chain for each such pair ("space"). The names are pdserve/prefix_keys.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pdserve.prefix_keys import KeyChain, PrefixKeys
from router.prefix_index import Hashes, hashes_of

Space = tuple[str, int]  # model fingerprint, block size


class PromptHashes:
    def __init__(self, cache_salt: str) -> None:
        self._cache_salt = cache_salt
        self._chains: dict[Space, tuple[KeyChain, Hashes]] = {}

    def of(self, spaces: Iterable[Space], token_ids: Sequence[int]) -> dict[Space, Hashes]:
        """``token_ids`` begins with what it was at earlier calls."""
        return {space: self._of(space, token_ids) for space in spaces}

    def _of(self, space: Space, token_ids: Sequence[int]) -> Hashes:
        num_blocks = len(token_ids) // space[1]
        known = self._chains.get(space)
        if known is not None and len(known[1]) >= num_blocks:
            return known[1][:num_blocks]
        chain = PrefixKeys(*space).chain(self._cache_salt) if known is None else known[0]
        keys = chain.keys(token_ids, num_blocks)
        hashes = hashes_of(b"".join([key.hash for key in keys]))
        self._chains[space] = chain, hashes
        return hashes
