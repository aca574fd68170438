import asyncio

import pytest

from kvtransfer.intake import IntakeBudget
from support.kv_pair import settle


def limited(bytes_per_step: int) -> IntakeBudget:
    budget = IntakeBudget(bytes_per_step)
    budget.set_unlimited(False)
    return budget


def started(budget: IntakeBudget, num_bytes: int) -> asyncio.Task[None]:
    return asyncio.create_task(budget.take(num_bytes))


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes_per_step"):
        IntakeBudget(0)


async def test_starts_without_limit_because_nothing_runs() -> None:
    budget = IntakeBudget(10)
    for _ in range(5):
        await budget.take(100)
    assert (budget.bytes_taken, budget.num_waits) == (500, 0)


async def test_takes_wait_for_the_next_step_in_order() -> None:
    budget = limited(10)
    tasks = [started(budget, 10) for _ in range(3)]
    await settle()
    for num_done in (1, 2, 3):
        assert [task.done() for task in tasks] == [True] * num_done + [False] * (3 - num_done)
        budget.refill()
        await settle()
    assert budget.bytes_taken == 30
    assert budget.num_waits == 2


async def test_a_large_frame_leaves_a_debt() -> None:
    budget = limited(10)
    await budget.take(35)
    later = started(budget, 1)
    for done in (False, False, True):
        budget.refill()
        await settle()
        assert later.done() is done


async def test_unused_budget_is_not_saved_up() -> None:
    budget = limited(10)
    for _ in range(5):
        budget.refill()
    await budget.take(10)
    later = started(budget, 1)
    await settle()
    assert not later.done()
    budget.refill()
    await later


async def test_a_small_take_does_not_overtake_a_waiting_one() -> None:
    budget = limited(10)
    await budget.take(20)
    first, second = started(budget, 10), started(budget, 1)
    await settle()
    budget.refill()
    await settle()
    assert not first.done()
    assert not second.done()
    budget.refill()
    await settle()
    assert first.done()
    assert not second.done()
    budget.refill()
    await second


async def test_a_cancelled_take_spends_nothing() -> None:
    budget = limited(10)
    await budget.take(10)
    gone, next_one = started(budget, 10), started(budget, 3)
    await settle()
    gone.cancel()
    await settle()
    assert budget.num_waiting == 1
    budget.refill()
    await next_one
    assert budget.bytes_taken == 13


async def test_idle_lets_everybody_in() -> None:
    budget = limited(10)
    await budget.take(10)
    waiting = [started(budget, 100) for _ in range(4)]
    await settle()
    budget.set_unlimited(True)
    await asyncio.gather(*waiting)
    assert budget.num_waiting == 0


async def test_the_limit_comes_back_with_one_full_step() -> None:
    budget = limited(10)
    await budget.take(50)
    budget.set_unlimited(True)
    budget.set_unlimited(False)
    await budget.take(10)
    later = started(budget, 1)
    await settle()
    assert not later.done()
    budget.refill()
    await later


async def test_what_is_taken_without_limit_does_not_overtake_those_who_wait() -> None:
    budget = limited(1)
    assert not budget.take_unlimited(1)  # there is one, though it has something left
    await budget.take(1)
    waiting = started(budget, 1)
    await settle()
    budget.set_unlimited(True)
    await waiting
    assert budget.take_unlimited(5)
    assert (budget.bytes_taken, budget.num_waits) == (7, 1)
