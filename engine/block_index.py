"""Which block of a pool still holds which content, by key (pdserve/prefix_keys.py).

Kept by block_pool.py, which alone knows who holds a block and when it is given away. Whoever wants
to know what changes has a feed (cache_feed.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.cache_feed import StoredBlocks
from pdserve.prefix_keys import BlockKey


class BlockIndex:
    def __init__(self) -> None:
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}
        self._feeds: list[StoredBlocks] = []

    def __len__(self) -> int:
        return len(self._key_of)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._key_of

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """Blocks of the longest run of known keys from the first one on."""
        found: list[int] = []
        for key in keys:
            block_id = self._block_of.get(key)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def block_of(self, key: BlockKey) -> int | None:
        return self._block_of.get(key)

    def store(self, key: BlockKey, block_id: int) -> None:
        """Nothing happens if another block holds the same, or this block is known already."""
        if key in self._block_of or block_id in self._key_of:
            return
        self._block_of[key] = block_id
        self._key_of[block_id] = key
        for feed in self._feeds:
            feed.stored(key.hash)

    def drop(self, block_id: int) -> None:
        """The content is not known any more; nothing if it never was."""
        key = self._key_of.pop(block_id, None)
        if key is not None:
            del self._block_of[key]
            for feed in self._feeds:
                feed.evicted(key.hash)

    def watch(self) -> StoredBlocks:
        """A feed of what changes from now on; begins with all there is. Ends with its ``close``."""
        feed = StoredBlocks(
            all_hashes=lambda: [key.hash for key in self._block_of], ended=self._feeds.remove
        )
        self._feeds.append(feed)
        return feed
