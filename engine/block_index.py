"""Which block of a pool still holds which content, by key (prefix_keys.py).

Kept by block_pool.py, which alone knows who holds a block and when it is given away. Every change
has a number and is remembered for a while, so that somebody who keeps a copy of this index (a
router that sends prompts where their prefix lies) can be told what is new or that it missed some.
Nobody asks yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from engine.prefix_keys import BlockKey

MAX_REMEMBERED_CHANGES = 4096


@dataclass(frozen=True, slots=True)
class IndexChange:
    """Change number ``seq``, counted from 1: a digest became known, or is not any more."""

    seq: int
    digest: bytes
    is_stored: bool


class BlockIndex:
    def __init__(self) -> None:
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}
        self._changes: deque[IndexChange] = deque(maxlen=MAX_REMEMBERED_CHANGES)
        self._num_changes = 0

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
        self._note(key, is_stored=True)

    def drop(self, block_id: int) -> None:
        """The content is not known any more; nothing if it never was."""
        key = self._key_of.pop(block_id, None)
        if key is not None:
            del self._block_of[key]
            self._note(key, is_stored=False)

    def changes_since(self, seq: int) -> list[IndexChange] | None:
        """Changes after number ``seq`` (0: all), oldest first; None if some are forgotten."""
        missing = self._num_changes - seq
        if missing > len(self._changes):
            return None
        return [change for change in self._changes if change.seq > seq]

    def _note(self, key: BlockKey, *, is_stored: bool) -> None:
        self._num_changes += 1
        self._changes.append(IndexChange(self._num_changes, key.digest, is_stored))
