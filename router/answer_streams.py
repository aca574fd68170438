"""Deltas of several answers to one prompt as one stream, each as it comes.

    generations -> one reader each -> a queue -> one reader (the face)

What waits is bounded by the answers' lengths, as in their own buffers. The failure of one ends all.
Choosing among answers is best_answers.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from router.text_generation import TextGeneration
from router.text_job import TextDelta

_Item = tuple[int, TextDelta] | BaseException


class AnswerStreams:
    """Made on a running loop. ``read`` until it returns None or raises; ``close`` in any case."""

    def __init__(self, generations: Sequence[TextGeneration]) -> None:
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._num_open = len(generations)
        self._readers = [
            asyncio.create_task(self._pass_on(index, generation), name=f"answer {index}")
            for index, generation in enumerate(generations)
        ]
        for reader in self._readers:
            reader.add_done_callback(self._reader_ended)

    async def read(self) -> tuple[int, TextDelta] | None:
        """The next delta and which answer it belongs to; None when all have ended.

        Raises:
            PdserveError: what the first answer that failed raised.
        """
        if not self._num_open:
            return None
        item = await self._items.get()
        if isinstance(item, BaseException):
            self._num_open = 0
            raise item
        if item[1].finish_reason is not None:
            self._num_open -= 1
        return item

    def close(self) -> None:
        """Read no further. The generations themselves are the caller's to cancel."""
        for reader in self._readers:
            reader.cancel()

    async def _pass_on(self, index: int, generation: TextGeneration) -> None:
        async for delta in generation:
            self._items.put_nowait((index, delta))

    def _reader_ended(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled() and (error := reader.exception()) is not None:
            self._items.put_nowait(error)
