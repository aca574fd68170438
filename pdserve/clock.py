"""Time as a value that is passed in, so that policies run under a virtual clock.

``Clock.now`` is monotonic and means nothing in another process. Waiting with a deadline is
``asyncio.timeout``; ``Clock.sleep`` exists for things that really take time (the fake engine's
steps, back-off). Not covered: wall-clock time (log lines and ``created`` stamps use time.time).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, monotonic, of this process only."""

    async def sleep(self, delay_s: float) -> None: ...


class MonotonicClock:
    """The real one."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class ManualClock:
    """Stands still until ``advance`` is called; sleepers wake in order of their wake-up time."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now_s

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + delay_s, next(self._order), future))
        await future

    def advance(self, by_s: float) -> None:
        """Move time forward and wake every sleeper whose time has come."""
        self._now_s += by_s
        while self._sleepers and self._sleepers[0][0] <= self._now_s:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
