"""How many bytes of arriving KV a decode worker takes in between two of its steps.

Copying and checking KV shares the memory bandwidth and the event loop with running sequences; an
unpaced burst makes their steps several times longer. Readers ``take`` before they place a block,
the worker calls ``refill`` at the end of each step. A block larger than what is left passes when
that is positive and leaves a debt, so the mean holds for any block size.

Knows neither blocks nor steps. Order is first come, first served.
"""

from __future__ import annotations

import asyncio
from collections import deque


class IntakeBudget:
    """``bytes_per_step`` bytes a step, or without limit while nothing is running (the start)."""

    def __init__(self, bytes_per_step: int) -> None:
        if bytes_per_step < 1:
            raise ValueError(f"bytes_per_step must be at least 1, not {bytes_per_step}")
        self.bytes_per_step = bytes_per_step
        self.bytes_taken = 0  # since the start
        self.num_waits = 0  # takes that had to wait
        self._left_bytes = bytes_per_step
        self._unlimited = True
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def num_waiting(self) -> int:
        return sum(not future.done() for _, future in self._waiting)

    async def take(self, num_bytes: int) -> None:
        """Return when ``num_bytes`` may be placed now."""
        if self._grants() and not self.num_waiting:
            self._spend(num_bytes)
            return
        self.num_waits += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, future))
        await future

    def take_unlimited(self, num_bytes: int) -> bool:
        """``take`` if there is no limit now and nobody waits; else False, and nothing is taken."""
        if not self._unlimited or self.num_waiting:
            return False
        self._spend(num_bytes)
        return True

    def refill(self) -> None:
        """One step has ended. Budget that was not used is not saved up."""
        self._left_bytes = min(self._left_bytes + self.bytes_per_step, self.bytes_per_step)
        self._admit()

    def set_unlimited(self, unlimited: bool) -> None:
        """True while no sequence runs: no step is disturbed, and none will call ``refill``."""
        if unlimited == self._unlimited:
            return
        self._unlimited = unlimited
        self._left_bytes = self.bytes_per_step
        self._admit()

    def _grants(self) -> bool:
        return self._unlimited or self._left_bytes > 0

    def _spend(self, num_bytes: int) -> None:
        self.bytes_taken += num_bytes
        if not self._unlimited:
            self._left_bytes -= num_bytes

    def _admit(self) -> None:
        while self._waiting and self._grants():
            num_bytes, future = self._waiting.popleft()
            if not future.done():  # else its reader was cancelled
                self._spend(num_bytes)
                future.set_result(None)
