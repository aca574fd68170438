"""Promises and the queue for blocks of arriving KV."""

from __future__ import annotations

import asyncio

import pytest

from decode_worker.room import ArrivalRoom
from engine.block_pool import BlockPool


async def test_promises_lower_what_can_be_promised() -> None:
    room = ArrivalRoom(BlockPool(10))
    room.promise(4)
    assert room.unpromised_blocks(reserve=1) == 5
    room.take_back(4)
    assert room.unpromised_blocks(reserve=0) == 10


async def test_taking_back_more_than_promised_is_a_bug() -> None:
    room = ArrivalRoom(BlockPool(4))
    with pytest.raises(AssertionError):
        room.take_back(1)


async def test_waiters_are_served_in_order_and_whole() -> None:
    pool = BlockPool(4)
    room = ArrivalRoom(pool)
    first = await room.lease(3, reserve=0)
    big = asyncio.create_task(room.lease(4, reserve=0))
    small = asyncio.create_task(room.lease(1, reserve=0))
    await asyncio.sleep(0)
    room.serve(reserve=0)
    assert not big.done() and not small.done()  # the small one does not overtake
    first.release()
    room.serve(reserve=0)
    (await big).release()
    room.serve(reserve=0)
    (await small).release()
    assert pool.num_free == 4 and room.num_waiting == 0


async def test_a_cancelled_wait_leaves_nothing_even_if_it_was_just_granted() -> None:
    pool = BlockPool(2)
    room = ArrivalRoom(pool)
    held = await room.lease(2, reserve=0)
    waiting = asyncio.create_task(room.lease(2, reserve=0))
    await asyncio.sleep(0)
    held.release()
    room.serve(reserve=0)  # granted, but the task has not run yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.num_free == 2 and room.num_waiting == 0
    held = await room.lease(2, reserve=0)
    waiting = asyncio.create_task(room.lease(1, reserve=0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.release()
    assert pool.num_free == 2 and room.num_waiting == 0


async def test_the_reserve_stays_free() -> None:
    pool = BlockPool(4)
    room = ArrivalRoom(pool)
    waiting = asyncio.create_task(room.lease(3, reserve=2))
    await asyncio.sleep(0)
    room.serve(reserve=2)
    assert not waiting.done()
    room.serve(reserve=1)
    (await waiting).release()
