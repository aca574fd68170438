"""The step loop with a scripted runner: pins, failures, waking, closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from engine.block_pool import BlockPool
from engine.loop import EngineLoop, StepTiming
from engine.step import SampledToken, StepRow
from pdserve.clock import ManualClock
from pdserve.errors import EngineFailure, PdserveError
from support.fake_engine import ScriptedRunner, make_sequence, prompt_row


class ListPlanner:
    """Plans what the test has put into ``steps``, one after the other."""

    def __init__(self) -> None:
        self.steps: list[list[StepRow]] = []
        self.applied: list[tuple[list[StepRow], list[SampledToken | None], StepTiming]] = []
        self.failed: list[tuple[list[StepRow], PdserveError]] = []
        self.happened = asyncio.Event()
        self.num_plans = 0
        self.free_at_apply: list[int] = []
        self.pool: BlockPool | None = None

    def plan(self) -> list[StepRow]:
        self.num_plans += 1
        return self.steps.pop(0) if self.steps else []

    def apply(
        self, rows: list[StepRow], results: list[SampledToken | None], timing: StepTiming
    ) -> None:
        self.applied.append((rows, results, timing))
        if self.pool is not None:
            self.free_at_apply.append(self.pool.num_free)
        self.happened.set()

    def step_failed(self, rows: list[StepRow], error: PdserveError) -> None:
        self.failed.append((rows, error))
        self.happened.set()

    async def next(self) -> None:
        async with asyncio.timeout(10):
            await self.happened.wait()
        self.happened.clear()


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock(100.0)
        self.runner = ScriptedRunner()
        self.planner = ListPlanner()
        self.pool = BlockPool(8)
        self.planner.pool = self.pool
        self.loop = EngineLoop(self.runner, self.planner, self.clock)  # type: ignore[arg-type]

    async def entered(self) -> None:
        async with asyncio.timeout(10):
            await self.runner.entered.wait()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.loop.close(grace_s=0)
    assert bench.pool.num_free == 8


async def test_results_and_timing_reach_the_planner(bench: Bench) -> None:
    sequence = make_sequence(bench.pool, 20)
    rows = [prompt_row(sequence)]
    bench.planner.steps.append(rows)
    bench.loop.start()
    await bench.entered()
    bench.clock.advance(0.25)
    assert bench.loop.is_stepping
    assert bench.loop.step_age_s == 0.25
    bench.runner.finish([SampledToken(7)])
    await bench.planner.next()
    assert bench.planner.applied == [(rows, [SampledToken(7)], StepTiming(100.0, 100.25))]
    assert bench.planner.applied[0][2].duration_s == 0.25
    assert (bench.loop.num_steps, bench.loop.step_age_s, bench.loop.is_stepping) == (1, 0.0, False)
    sequence.lease.release()


async def test_idle_loop_waits_for_a_wake_and_plans_once_for_it(bench: Bench) -> None:
    bench.loop.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.planner.num_plans == 1
    sequence = make_sequence(bench.pool, 4)
    bench.planner.steps.append([prompt_row(sequence)])
    bench.loop.wake()
    bench.loop.wake()
    await bench.entered()
    bench.runner.finish([None])
    await bench.planner.next()
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.planner.num_plans == 3  # first look, the step, the look after it
    sequence.lease.release()


async def test_wake_during_a_step_is_not_lost(bench: Bench) -> None:
    sequence = make_sequence(bench.pool, 4)
    bench.planner.steps.append([prompt_row(sequence)])
    bench.loop.start()
    await bench.entered()
    bench.planner.steps.append([prompt_row(sequence)])
    bench.loop.wake()
    bench.runner.finish([None])
    bench.runner.finish([None])
    await bench.planner.next()
    while bench.loop.num_steps < 2:
        await bench.planner.next()
    sequence.lease.release()


async def test_release_during_a_step_takes_effect_before_apply(bench: Bench) -> None:
    sequence = make_sequence(bench.pool, 40)
    bench.planner.steps.append([prompt_row(sequence)])
    bench.loop.start()
    await bench.entered()
    sequence.lease.release()
    assert bench.pool.num_free == 5
    bench.runner.finish([None])
    await bench.planner.next()
    assert bench.planner.free_at_apply == [8]


@pytest.mark.parametrize("raised", [EngineFailure("kernel"), RuntimeError("device lost")])
async def test_a_failed_step_is_told_and_the_loop_goes_on(bench: Bench, raised: Exception) -> None:
    sequence = make_sequence(bench.pool, 4)
    rows = [prompt_row(sequence)]
    bench.planner.steps.extend([rows, [prompt_row(sequence)]])
    bench.runner.finish(raised)
    bench.runner.finish([SampledToken(1)])
    bench.loop.start()
    await bench.planner.next()
    ((failed_rows, error),) = bench.planner.failed
    assert failed_rows == rows
    assert isinstance(error, EngineFailure)
    assert str(raised) in str(error)
    if not bench.planner.applied:
        await bench.planner.next()
    assert bench.planner.applied[0][1] == [SampledToken(1)]
    assert bench.loop.num_steps == 2
    sequence.lease.release()


async def test_close_lets_the_running_step_end(bench: Bench) -> None:
    sequence = make_sequence(bench.pool, 4)
    bench.planner.steps.extend([[prompt_row(sequence)], [prompt_row(sequence)]])
    bench.loop.start()
    await bench.entered()
    closing = asyncio.create_task(bench.loop.close())
    await asyncio.sleep(0)
    bench.runner.finish([None])
    await closing
    assert len(bench.planner.applied) == 1
    assert len(bench.runner.calls) == 1  # no further step
    sequence.lease.release()


async def test_close_gives_up_on_a_step_that_hangs(bench: Bench) -> None:
    sequence = make_sequence(bench.pool, 4)
    bench.planner.steps.append([prompt_row(sequence)])
    bench.loop.start()
    await bench.entered()
    await bench.loop.close(grace_s=0)
    assert bench.planner.applied == []
    sequence.lease.release()  # and the pins are gone: the fixture finds the pool full


async def test_a_broken_planner_ends_the_loop_and_shows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan() -> list[StepRow]:
        raise LookupError("planner fault")

    monkeypatch.setattr(bench.planner, "plan", plan)
    bench.loop.start()
    with pytest.raises(LookupError):
        await bench.loop.ended()
    bench.clock.advance(30)
    assert bench.loop.step_age_s == 30  # the router sees a worker that hangs
