"""A session's EventSink that keeps what it is told, and lets a test wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pdserve.messages import WorkerEvent

EventT = TypeVar("EventT")

WAIT_S = 20.0  # a test that waits this long has failed


class RecordingSink:
    """Satisfies ``EventSink``. ``events`` in order of emission."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []
        self.num_status_changes = 0
        self._changed = asyncio.Event()

    def emit(self, event: WorkerEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def status_changed(self) -> None:
        self.num_status_changes += 1
        self._changed.set()

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def kinds(self) -> list[str]:
        """Class names of the events, in order."""
        return [type(event).__name__ for event in self.events]

    async def until(self, condition: Callable[[RecordingSink], bool]) -> None:
        """Return once ``condition(self)`` holds; it is looked at after every event and change."""
        async with asyncio.timeout(WAIT_S):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    async def first(self, kind: type[EventT]) -> EventT:
        """The first event of ``kind``, waited for."""
        return (await self.number(kind, 1))[0]

    async def number(self, kind: type[EventT], count: int) -> list[EventT]:
        """All events of ``kind`` once there are at least ``count``."""
        await self.until(lambda sink: len(sink.of(kind)) >= count)
        return self.of(kind)
