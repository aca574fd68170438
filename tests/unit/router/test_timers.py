"""Timers on a manual clock: order, cancelling, no task left."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.clock import ManualClock
from router.timers import Timers
from support.scripted_worker import settle


async def test_callbacks_come_at_their_time_and_in_order() -> None:
    clock, fired = ManualClock(), []
    timers = Timers(clock)
    for when_s in (5.0, 1.0, 3.0, 2.0):
        timers.at(when_s, lambda when_s=when_s: fired.append(when_s))  # type: ignore[misc]
        await settle()
    clock.advance(0.9)
    await settle()
    assert fired == []
    clock.advance(0.1)
    await settle()
    assert fired == [1.0]
    clock.advance(2.5)
    await settle()
    assert fired == [1.0, 2.0, 3.0]
    clock.advance(10.0)
    await settle()
    assert fired == [1.0, 2.0, 3.0, 5.0]
    assert asyncio.all_tasks() == {asyncio.current_task()}, "no timer, no task"


async def test_cancelled_timers_do_not_fire_and_new_ones_do_later() -> None:
    clock, fired = ManualClock(), []
    timers = Timers(clock)
    timer = timers.at(1.0, lambda: fired.append("cancelled"))
    assert timer.is_pending
    timer.cancel()
    timer.cancel()
    assert not timer.is_pending
    clock.advance(1.0)
    await settle()
    timers.at(0.5, lambda: fired.append("at once"))
    await settle()
    timers.at(4.0, lambda: timers.at(5.0, lambda: fired.append("from a callback")) and None)
    clock.advance(3.0)
    await settle()
    clock.advance(1.0)
    await settle()
    assert fired == ["at once", "from a callback"]
    await timers.close()


async def test_a_callback_that_fails_disturbs_no_other() -> None:
    clock, fired, problems = ManualClock(), [], []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))

    def fail() -> None:
        raise ValueError("scripted")

    timers = Timers(clock)
    timers.at(1.0, fail)
    timers.at(1.0, lambda: fired.append("next"))
    clock.advance(1.0)
    await settle()
    assert fired == ["next"]
    assert [str(problem) for problem in problems] == ["scripted"]


@pytest.mark.parametrize("num_timers", [0, 3])
async def test_close_leaves_no_task(num_timers: int) -> None:
    timers = Timers(ManualClock())
    for number in range(num_timers):
        timers.at(10.0 - number, lambda: None)  # each one earlier than the ones before
    await timers.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
