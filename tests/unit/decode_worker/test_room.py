"""Promises and the queue for blocks of arriving KV."""

from __future__ import annotations

import asyncio

import pytest

from decode_worker.room import ArrivalRoom
from engine.block_pool import BlockPool
from engine.prefix_cache import ContextClaim
from pdserve.prefix_keys import PrefixKeys
from support.fake_engine import make_attempt


async def test_promises_lower_what_can_be_promised() -> None:
    pool = BlockPool(10)
    room = ArrivalRoom(pool)
    promise = room.promise(ContextClaim(pool, 3), num_extra=1)
    assert room.unpromised_blocks(reserve=1) == 5
    room.take_back(promise)
    assert room.unpromised_blocks(reserve=0) == 10


async def test_taking_a_promise_back_twice_is_a_bug() -> None:
    pool = BlockPool(4)
    room = ArrivalRoom(pool)
    promise = room.promise(ContextClaim(pool, 1))
    room.take_back(promise)
    with pytest.raises(AssertionError):
        room.take_back(promise)


def cached_claim(pool: BlockPool, num_cached: int, num_blocks: int) -> ContextClaim:
    """A claim of whose blocks the first are in the pool already, free."""
    chain = PrefixKeys("model", block_size=1).chain("")
    keys = chain.keys(make_attempt(range(num_blocks)).context_ids, num_blocks)
    lease = pool.lease(num_cached)
    assert lease is not None
    lease.store(keys, num_cached)
    lease.release()
    return ContextClaim(pool, num_blocks, keys, chain)


async def test_a_promise_holds_what_is_cached_and_promises_the_rest() -> None:
    pool = BlockPool(10)
    room = ArrivalRoom(pool)
    promise = room.promise(cached_claim(pool, 4, 6), num_extra=1)
    assert (pool.num_free, room.promised_blocks) == (6, 3)
    assert room.unpromised_blocks(reserve=0) == 3
    other = pool.lease(6)  # as running sequences may: held blocks are not evicted for it
    assert other is not None
    assert len(pool.find(promise.claim._keys)) == 4
    other.release()
    lease = await room.lease(promise.claim, reserve=0)
    room.take_back(promise)
    assert (lease.num_cached, pool.num_free, room.promised_blocks) == (4, 4, 0)
    lease.release()
    assert pool.num_free == 10


async def test_those_who_arrive_hold_nothing_against_those_who_are_here() -> None:
    pool = BlockPool(10)
    room = ArrivalRoom(pool)
    promise = room.promise(cached_claim(pool, 4, 6))
    running = pool.lease(5)
    assert running is not None
    room.make_way(reserve=1)
    assert (pool.num_free, room.promised_blocks) == (1, 2)  # enough for one block: it keeps them
    room.make_way(reserve=2)
    assert (pool.num_free, room.promised_blocks) == (5, 6)
    assert running.extend(5)
    waiting = asyncio.create_task(room.lease(promise.claim, reserve=0))
    await asyncio.sleep(0)
    assert not waiting.done()
    running.release()
    room.serve(reserve=0)
    lease = await waiting
    assert lease.num_cached == 0  # evicted meanwhile
    room.take_back(promise)
    lease.release()
    assert pool.num_free == 10


async def test_a_wait_is_granted_what_came_into_the_cache_meanwhile() -> None:
    pool = BlockPool(6)
    room = ArrivalRoom(pool)
    blocker = pool.lease(6)
    assert blocker is not None
    chain = PrefixKeys("model", block_size=1).chain("")
    keys = chain.keys(range(4), 4)
    waiting = asyncio.create_task(room.lease(ContextClaim(pool, 4, keys, chain), reserve=0))
    await asyncio.sleep(0)
    blocker.store(keys, 3)
    blocker.release()
    room.serve(reserve=0)
    lease = await waiting
    assert lease.num_cached == 3
    lease.release()


async def test_waiters_are_served_in_order_and_whole() -> None:
    pool = BlockPool(4)
    room = ArrivalRoom(pool)
    first = await room.lease(ContextClaim(pool, 3), reserve=0)
    big = asyncio.create_task(room.lease(ContextClaim(pool, 4), reserve=0))
    small = asyncio.create_task(room.lease(ContextClaim(pool, 1), reserve=0))
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
    held = await room.lease(ContextClaim(pool, 2), reserve=0)
    waiting = asyncio.create_task(room.lease(ContextClaim(pool, 2), reserve=0))
    await asyncio.sleep(0)
    held.release()
    room.serve(reserve=0)  # granted, but the task has not run yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.num_free == 2 and room.num_waiting == 0
    held = await room.lease(ContextClaim(pool, 2), reserve=0)
    waiting = asyncio.create_task(room.lease(ContextClaim(pool, 1), reserve=0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.release()
    assert pool.num_free == 2 and room.num_waiting == 0


async def test_the_reserve_stays_free() -> None:
    pool = BlockPool(4)
    room = ArrivalRoom(pool)
    waiting = asyncio.create_task(room.lease(ContextClaim(pool, 3), reserve=2))
    await asyncio.sleep(0)
    room.serve(reserve=2)
    assert not waiting.done()
    room.serve(reserve=1)
    (await waiting).release()
