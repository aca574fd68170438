"""A bounded first-in-first-out buffer between a link and its stream, that can end.

    putters --put--> [ items, at most limit ] --get--> one getter

Putters wait in order while it is full. ``end`` refuses what is put from then on and lets the getter
take what is there; after the last item both sides raise the error that ended it. asyncio.Queue has
no such end in Python 3.11. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from pdserve.errors import PdserveError

ItemT = TypeVar("ItemT")


class Mailbox(Generic[ItemT]):
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[ItemT] = deque()
        self._putters: deque[tuple[asyncio.Future[None], ItemT]] = deque()
        self._getter: asyncio.Future[None] | None = None
        self._end: PdserveError | None = None

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: ItemT) -> None:
        """Append. A cancelled put has either appended or left no trace.

        Raises:
            PdserveError: what it was ended with.
        """
        self._raise_if_ended()
        if len(self._items) < self._limit:
            self._append(item)
            return
        waiting = (asyncio.get_running_loop().create_future(), item)
        self._putters.append(waiting)
        try:
            await waiting[0]
        finally:
            if waiting in self._putters:
                self._putters.remove(waiting)

    async def get(self) -> ItemT:
        """The oldest item; one getter at a time.

        Raises:
            PdserveError: ended, and every item has been taken.
        """
        while not self._items:
            self._raise_if_ended()
            await self._wait_for_item()
        item = self._items.popleft()
        if self._putters:
            # The waiting item moves in here, so that no later put can overtake it.
            future, waiting = self._putters.popleft()
            self._append(waiting)
            future.set_result(None)
        return item

    def end(self, error: PdserveError) -> None:
        """The first call decides the error."""
        if self._end is not None:
            return
        self._end = error
        while self._putters:
            future, _ = self._putters.popleft()
            future.set_exception(self._fresh_end(error))
        self._wake_getter()

    def _append(self, item: ItemT) -> None:
        self._items.append(item)
        self._wake_getter()

    def _wake_getter(self) -> None:
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)

    async def _wait_for_item(self) -> None:
        if self._getter is not None:
            raise RuntimeError("two tasks receive from one link")
        self._getter = asyncio.get_running_loop().create_future()
        try:
            await self._getter
        finally:
            self._getter = None

    def _raise_if_ended(self) -> None:
        if self._end is not None:
            raise self._fresh_end(self._end)

    def _fresh_end(self, error: PdserveError) -> PdserveError:
        """A copy: one exception raised in many places would collect all their tracebacks."""
        copy = type(error).__new__(type(error), *error.args)
        copy.args = error.args
        copy.__dict__.update(error.__dict__)
        return copy
