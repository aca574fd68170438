"""Who gets free blocks when KV arrives: promises at admission, whole leases in order of asking.

The worker's own counter is the authority over all routers: a leg is admitted only if the blocks
of its context are neither leased nor promised to somebody else. Promised blocks may still be used
up by running sequences that grow (they go first); then the arriving one waits here, which cannot
deadlock since everybody older can finish without it (docs/protocol.md 4). The same holds for blocks
whose content an arriving context shares: it holds them from its admission on, but not against those
who are here (``make_way``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from engine.block_pool import BlockLease, BlockPool
from engine.prefix_cache import ContextClaim


@dataclass(slots=True, eq=False)
class Promise:
    """Blocks that an admitted context will need: of its claim, and ``num_extra`` for growth."""

    claim: ContextClaim
    num_extra: int
    num_blocks: int = 0  # counted as promised: what the claim does not hold yet, and the extra


@dataclass(frozen=True, slots=True)
class _Waiter:
    claim: ContextClaim
    granted: asyncio.Future[BlockLease]


class ArrivalRoom:
    """Promises and the queue of those who wait for their lease."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._waiters: deque[_Waiter] = deque()
        self._promises: set[Promise] = set()

    @property
    def promised_blocks(self) -> int:
        return sum(promise.num_blocks for promise in self._promises)

    @property
    def num_waiting(self) -> int:
        return len(self._waiters)

    def unpromised_blocks(self, reserve: int) -> int:
        """Blocks that may be promised while ``reserve`` stay free for those already here."""
        return self._pool.num_free - self.promised_blocks - reserve

    def promise(self, claim: ContextClaim, num_extra: int = 0) -> Promise:
        """Hold what the claim shares, promise the rest of its blocks and ``num_extra`` more."""
        claim.hold()
        promise = Promise(claim, num_extra, claim.num_needed + num_extra)
        self._promises.add(promise)
        return promise

    def take_back(self, promise: Promise) -> None:
        """A promise ends: it became a lease, or its leg ended."""
        assert promise in self._promises, "promise taken back twice"
        self._promises.remove(promise)
        promise.claim.let_go()

    def make_way(self, reserve: int) -> None:
        """With fewer than ``reserve`` free, nobody who arrives holds anything: all is promised."""
        if self._pool.num_free >= reserve:
            return
        for promise in self._promises:
            if promise.claim.is_holding:
                promise.claim.let_go()
                promise.num_blocks = promise.claim.num_blocks + promise.num_extra

    async def lease(self, claim: ContextClaim, reserve: int) -> BlockLease:
        """All blocks of a context, at once or when ``serve`` finds them free.

        Cancelling the wait leaves nothing behind.
        """
        if not self._waiters:
            lease = self._take(claim, reserve)
            if lease is not None:
                return lease
        granted: asyncio.Future[BlockLease] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(claim, granted)
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
            lease = self._take(waiter.claim, reserve)
            if lease is None:
                return
            self._waiters.popleft()
            waiter.granted.set_result(lease)
            reserve += 1

    def _take(self, claim: ContextClaim, reserve: int) -> BlockLease | None:
        if claim.num_needed + reserve > self._pool.num_free:
            return None
        return claim.take()
