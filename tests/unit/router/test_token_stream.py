"""The buffer between workers and one reader: order, end, error, cancel."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.errors import DeadlineExceeded, RequestCancelled
from pdserve.request_timing import RequestTiming
from pdserve.types import FinishReason, RequestId, TokenEvent
from router.token_stream import TokenStream
from support.scripted_worker import settle

REQUEST = RequestId("r")


def token(index: int, finish: FinishReason | None = None) -> TokenEvent:
    return TokenEvent(REQUEST, 1, index, 10 + index, finish)


def make_stream(reasons: list[str] | None = None) -> TokenStream:
    cancel = (reasons if reasons is not None else []).append
    return TokenStream(REQUEST, lambda: RequestTiming(total_s=1.0), cancel)


async def test_tokens_put_before_and_while_reading() -> None:
    stream = make_stream()
    stream.put(token(0))
    reading = asyncio.create_task(_all_of(stream))
    await settle()
    stream.put(token(1))
    stream.put(token(2, FinishReason.STOP))
    stream.end(None)
    assert [event.index for event in await reading] == [0, 1, 2]
    assert await _all_of(stream) == []
    assert (stream.request_id, stream.timing.total_s) == (REQUEST, 1.0)


async def test_what_is_ready_needs_no_wait() -> None:
    stream = make_stream()
    assert stream.ready() is None
    stream.put(token(0))
    stream.put(token(1, FinishReason.STOP))
    stream.end(None)
    assert (await anext(stream)).index == 0
    ready = stream.ready()
    assert ready is not None
    assert ready.index == 1
    assert stream.ready() is None
    assert await _all_of(stream) == []


async def test_an_error_comes_after_what_was_delivered_and_once() -> None:
    stream = make_stream()
    stream.put(token(0))
    stream.end(DeadlineExceeded("late"))
    assert (await anext(stream)).index == 0
    with pytest.raises(DeadlineExceeded):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_reader_that_left_gets_nothing_more() -> None:
    reasons: list[str] = []
    stream = make_stream(reasons)
    stream.put(token(0))
    stream.cancel("gone")
    stream.end(RequestCancelled("gone"), drop_buffered=True)
    stream.cancel("again")
    assert reasons == ["gone"]
    assert stream.num_buffered == 0
    with pytest.raises(RequestCancelled):
        await anext(stream)


async def test_a_reader_that_is_cancelled_loses_no_token() -> None:
    stream = make_stream()
    reading = asyncio.create_task(_all_of(stream))
    await settle()
    reading.cancel()
    await asyncio.wait([reading])
    stream.put(token(0))
    stream.end(None)
    assert [event.index for event in await _all_of(stream)] == [0]


async def _all_of(stream: TokenStream) -> list[TokenEvent]:
    return [event async for event in stream]
