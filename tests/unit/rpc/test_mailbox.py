"""The buffer of a link: order, bound, end, and what cancellation leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.errors import IncompatibleWorker, WorkerLost
from pdserve.rpc.mailbox import Mailbox


async def _turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_waiting_putters_keep_their_order() -> None:
    box: Mailbox[int] = Mailbox(2)
    putters = [asyncio.create_task(box.put(number)) for number in range(6)]
    await _turns()
    assert [putter.done() for putter in putters] == [True, True, False, False, False, False]
    taken = [await box.get()]
    late = asyncio.create_task(box.put(6))  # must not overtake the four that wait
    taken += [await box.get() for _ in range(6)]
    assert taken == list(range(7))
    await asyncio.gather(late, *putters)


async def test_a_getter_waits_for_an_item() -> None:
    box: Mailbox[str] = Mailbox(1)
    getter = asyncio.create_task(box.get())
    await _turns()
    assert not getter.done()
    await box.put("item")
    assert await getter == "item"


async def test_items_outlive_the_end() -> None:
    box: Mailbox[int] = Mailbox(4)
    await box.put(1)
    await box.put(2)
    box.end(WorkerLost("gone"))
    with pytest.raises(WorkerLost, match="gone"):
        await box.put(3)
    assert [await box.get(), await box.get()] == [1, 2]
    with pytest.raises(WorkerLost, match="gone"):
        await box.get()


async def test_the_end_wakes_everybody_and_the_first_one_counts() -> None:
    empty: Mailbox[int] = Mailbox(1)
    full: Mailbox[int] = Mailbox(1)
    await full.put(0)
    waits = [asyncio.create_task(empty.get()), asyncio.create_task(full.put(1))]
    await _turns()
    for box in (empty, full):
        box.end(IncompatibleWorker("model_fingerprint: a, not b"))
        box.end(WorkerLost("later"))
    for wait in waits:
        with pytest.raises(IncompatibleWorker, match="model_fingerprint"):
            await wait
    assert await full.get() == 0


async def test_each_raise_is_an_error_of_its_own() -> None:
    box: Mailbox[int] = Mailbox(1)
    box.end(WorkerLost("gone"))
    raised = []
    for _ in range(2):
        with pytest.raises(WorkerLost) as caught:
            await box.get()
        raised.append(caught.value)
    assert raised[0] is not raised[1]


async def test_a_cancelled_put_leaves_no_trace() -> None:
    box: Mailbox[int] = Mailbox(1)
    await box.put(0)
    cancelled, patient = (asyncio.create_task(box.put(number)) for number in (1, 2))
    await _turns()
    cancelled.cancel()
    await _turns()
    assert [await box.get(), await box.get()] == [0, 2]
    await patient
    box.end(WorkerLost("gone"))
    with pytest.raises(WorkerLost):
        await box.get()


async def test_a_cancelled_get_loses_nothing() -> None:
    box: Mailbox[int] = Mailbox(1)
    getter = asyncio.create_task(box.get())
    await _turns()
    await box.put(1)
    getter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getter
    assert await box.get() == 1


async def test_two_getters_are_a_mistake() -> None:
    box: Mailbox[int] = Mailbox(1)
    first = asyncio.create_task(box.get())
    await _turns()
    with pytest.raises(RuntimeError, match="two tasks"):
        await box.get()
    first.cancel()
