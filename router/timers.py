"""Callbacks at a time of the injected clock: one sleeping task for all of them.

The task exists only while a timer is pending. Callbacks run on the event loop, outside the task,
so that one that fails disturbs no other. It does not know what the times mean.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from pdserve.clock import Clock


class Timer:
    """One callback to come; ``cancel`` is idempotent."""

    def __init__(self, when_s: float, callback: Callable[[], None]) -> None:
        self.when_s = when_s
        self._callback: Callable[[], None] | None = callback

    @property
    def is_pending(self) -> bool:
        return self._callback is not None

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Timers:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Timer]] = []
        self._driver: asyncio.Task[None] | None = None
        self._driver_until_s = 0.0
        self._replaced: set[asyncio.Task[None]] = set()

    def at(self, when_s: float, callback: Callable[[], None]) -> Timer:
        """Call back once the clock shows ``when_s`` or later."""
        timer = Timer(when_s, callback)
        heapq.heappush(self._heap, (when_s, next(self._order), timer))
        if self._driver is None or when_s < self._driver_until_s:
            self._restart()
        return timer

    async def close(self) -> None:
        self._heap.clear()
        pending = [*self._replaced, *([self._driver] if self._driver else [])]
        self._driver = None
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _restart(self) -> None:
        if self._driver is not None:
            self._driver.cancel()
            self._replaced.add(self._driver)
            self._driver.add_done_callback(self._replaced.discard)
        self._driver_until_s = self._heap[0][0]
        self._driver = asyncio.create_task(self._drive(), name="router timers")

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        while self._heap:
            when_s, _, timer = self._heap[0]
            wait_s = when_s - self._clock.now()
            if not timer.is_pending:
                heapq.heappop(self._heap)
            elif wait_s > 0:
                self._driver_until_s = when_s
                await self._clock.sleep(wait_s)
            else:
                heapq.heappop(self._heap)
                loop.call_soon(timer.fire)
        self._driver = None
