"""Work that others watch: it ends by itself, or with the first watch that raises."""

from __future__ import annotations

import asyncio

import pytest

from cluster.tasks import unless_one_fails


class Sign:
    """A watch or a work that ends when it is told to; knows whether it was cancelled."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go = asyncio.Event()
        self.was_cancelled = False
        self._error = error

    async def wait(self) -> None:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if self._error is not None:
            raise self._error


async def test_work_that_ends_ends_the_watches() -> None:
    work, watch = Sign(), Sign()
    waiting = asyncio.create_task(unless_one_fails(work.wait(), [watch.wait()]))
    await asyncio.sleep(0)
    work.go.set()
    await waiting
    assert (work.was_cancelled, watch.was_cancelled) == (False, True)


async def test_a_watch_that_raises_ends_the_work_one_that_returns_does_not() -> None:
    work, quiet, loud = Sign(), Sign(), Sign(ValueError("loud"))
    waiting = asyncio.create_task(unless_one_fails(work.wait(), [quiet.wait(), loud.wait()]))
    quiet.go.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    loud.go.set()
    with pytest.raises(ValueError, match="loud"):
        await waiting
    assert work.was_cancelled


async def test_the_error_of_the_work_is_its_own_also_when_a_watch_fails_at_once() -> None:
    work, watch = Sign(KeyError("own")), Sign(ValueError("loud"))
    waiting = asyncio.create_task(unless_one_fails(work.wait(), [watch.wait()]))
    work.go.set()
    watch.go.set()
    with pytest.raises(KeyError, match="own"):
        await waiting
