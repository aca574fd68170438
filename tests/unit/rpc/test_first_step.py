"""The first step of a write is told before its await returns, and nothing else of it changes."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.rpc.first_step import FirstStep


async def test_the_first_step_is_told_while_the_await_goes_on() -> None:
    told: list[str] = []
    news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def write() -> None:
        told.append("handed over")
        await news
        told.append("back")

    writing = asyncio.ensure_future(waited(FirstStep(write(), lambda: told.append("first step"))))
    await asyncio.sleep(0)
    assert told == ["handed over", "first step"]
    news.set_result(None)
    await writing
    assert told == ["handed over", "first step", "back"]


async def test_a_write_of_one_step_is_told_once() -> None:
    told: list[int] = []

    async def write() -> None:
        pass

    await FirstStep(write(), lambda: told.append(1))
    assert told == [1]


async def test_an_error_of_the_first_step_is_raised_and_nothing_told() -> None:
    async def write() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await FirstStep(write(), lambda: pytest.fail("told"))


async def test_errors_and_cancellation_reach_what_is_awaited() -> None:
    seen: list[type[BaseException]] = []
    news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def write() -> None:
        try:
            await news
        except BaseException as error:
            seen.append(type(error))
            raise

    writing = asyncio.ensure_future(waited(FirstStep(write(), lambda: None)))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    news = asyncio.get_running_loop().create_future()
    news.set_exception(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await FirstStep(write(), lambda: None)
    assert seen == [asyncio.CancelledError, OSError]


async def waited(step: FirstStep) -> None:
    await step
