"""Blocks whose numbers were given to a reader that reads them in place, and has not said it did.

Each is one pin of the lease, in order of the frames. Knows neither frames nor connections.
"""

from __future__ import annotations

import asyncio
from collections import deque

from kvtransfer.store import Lease


class LentBlocks:
    """Of one read. Every ``lend`` is undone by credit or by ``take_back``."""

    def __init__(self) -> None:
        self._lent: deque[tuple[Lease, int]] = deque()
        self._credited_bytes = 0
        self._returned = asyncio.Event()

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes for _, num_bytes in self._lent)

    def lend(self, lease: Lease, num_bytes: int) -> None:
        lease.pin()
        self._lent.append((lease, num_bytes))

    def give_back(self, num_bytes: int) -> None:
        """The reader is done with so many bytes, the oldest ones."""
        self._credited_bytes += num_bytes
        while self._lent and self._lent[0][1] <= self._credited_bytes:
            lease, lent_bytes = self._lent.popleft()
            self._credited_bytes -= lent_bytes
            lease.unpin()
        if not self._lent:
            self._returned.set()

    def take_back(self) -> None:
        """All of it: the reader is done, or is not waited for any longer."""
        self.give_back(self.num_bytes)

    async def returned(self, receiving: asyncio.Task[None], timeout_s: float) -> bool:
        """Wait until everything is back or ``receiving`` has ended; False: not in time."""
        if not self._lent:
            return True
        self._returned.clear()
        back = asyncio.create_task(self._returned.wait())
        done, _ = await asyncio.wait(
            {back, receiving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        back.cancel()
        await asyncio.gather(back, return_exceptions=True)
        return bool(done)
