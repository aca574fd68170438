"""Who gets free blocks when KV arrives: promises at admission, whole leases in order of asking.

The worker's own counter is the authority over all routers: a leg is admitted only if the blocks
of its context are neither leased nor promised to somebody else. Promised blocks may still be used
up by running sequences that grow (they go first); then the arriving one waits here, which cannot
deadlock since everybody older can finish without it (docs/protocol.md 4).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from engine.block_pool import BlockLease, BlockPool


@dataclass(frozen=True, slots=True)
class _Waiter:
    num_blocks: int
    granted: asyncio.Future[BlockLease]


class ArrivalRoom:
    """Promises and the queue of those who wait for their lease."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._waiters: deque[_Waiter] = deque()
        self.promised_blocks = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiters)

    def unpromised_blocks(self, reserve: int) -> int:
        """Blocks that may be promised while ``reserve`` stay free for those already here."""
        return self._pool.num_free - self.promised_blocks - reserve

    def promise(self, num_blocks: int) -> None:
        self.promised_blocks += num_blocks

    def take_back(self, num_blocks: int) -> None:
        """A promise ends: it became a lease, or its leg ended."""
        assert num_blocks <= self.promised_blocks, "promise taken back twice"
        self.promised_blocks -= num_blocks

    async def lease(self, num_blocks: int, reserve: int) -> BlockLease:
        """All blocks of a context, at once or when ``serve`` finds them free.

        Cancelling the wait leaves nothing behind.
        """
        if not self._waiters:
            lease = self._take(num_blocks, reserve)
            if lease is not None:
                return lease
        granted: asyncio.Future[BlockLease] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(num_blocks, granted)
        self._waiters.append(waiter)
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                granted.result().release()
            else:
                self._waiters.remove(waiter)
            raise

    def serve(self, reserve: int) -> None:
        """Hand blocks to those waiting, first come first served; called when blocks came back."""
        while self._waiters:
            waiter = self._waiters[0]
            lease = self._take(waiter.num_blocks, reserve)
            if lease is None:
                return
            self._waiters.popleft()
            waiter.granted.set_result(lease)
            reserve += 1

    def _take(self, num_blocks: int, reserve: int) -> BlockLease | None:
        if num_blocks + reserve > self._pool.num_free:
            return None
        return self._pool.lease(num_blocks)
