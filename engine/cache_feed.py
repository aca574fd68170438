"""What changed in a prefix cache since it was last told: for routers, one feed a session.

A feed begins with everything there is (``reset``), then tells what came and went. What came and
went again in between is not told. A feed that nobody takes from for so long that the changes
outnumber the blocks starts again. Satisfies ``CacheFeed`` (pdserve/roles.py). Knows hashes only;
numbering and sending are the session's. Not covered: where a block lies, how often it was used.
"""

from __future__ import annotations

from collections.abc import Callable

from pdserve.roles import CacheDelta

MAX_HASHES = 16_384  # in one delta: 128 KiB of a report


class StoredBlocks:
    def __init__(
        self, *, all_hashes: Callable[[], list[bytes]], ended: Callable[[StoredBlocks], None]
    ) -> None:
        """``all_hashes``: of every stored block now; ``ended`` is told of ``close``."""
        self._all_hashes = all_hashes
        self._ended = ended
        self._changes: dict[bytes, bool] = {}  # hash -> stored (or evicted) since the last take
        self._must_reset = True

    def stored(self, block_hash: bytes) -> None:
        self._note(block_hash, True)

    def evicted(self, block_hash: bytes) -> None:
        self._note(block_hash, False)

    def restart(self) -> None:
        """Begin again with everything there is."""
        self._changes.clear()
        self._must_reset = True

    def take(self) -> CacheDelta | None:
        """What is not told yet, at most MAX_HASHES of it; None: nothing."""
        if not self._must_reset and not self._changes:
            return None
        is_reset = self._must_reset
        if is_reset:
            self._must_reset = False
            self._changes = dict.fromkeys(self._all_hashes(), True)
        told = list(self._changes)[:MAX_HASHES]
        stored = [block_hash for block_hash in told if self._changes[block_hash]]
        evicted = [block_hash for block_hash in told if not self._changes[block_hash]]
        if len(told) == len(self._changes):
            self._changes = {}
        else:
            for block_hash in told:
                del self._changes[block_hash]
        return CacheDelta(b"".join(stored), b"".join(evicted), is_reset, bool(self._changes))

    def close(self) -> None:
        self._changes.clear()
        self._ended(self)

    def _note(self, block_hash: bytes, is_stored: bool) -> None:
        if self._must_reset:
            return
        self._changes[block_hash] = is_stored
        if len(self._changes) > MAX_HASHES and len(self._changes) > 2 * len(self._all_hashes()):
            self.restart()
