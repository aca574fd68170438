"""The step loop: ask the planner for rows, run them, hand the results back, for ever.

    plan() --rows--> pin leases -> runner.run -> unpin leases --> apply() or step_failed()
       \\--no rows--> sleep until wake()

While a step runs the rows' leases are pinned, so a lease released meanwhile (a cancelled request)
gives its blocks back right after the step and before the planner sees the results.

Runs on the event loop; only the runner may compute elsewhere. Knows neither roles nor sessions.
Not covered: overlapping the planning of one step with the run of the one before.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from engine.step import SampledToken, StepRow, StepRunner
from pdserve.clock import Clock
from pdserve.errors import EngineFailure, PdserveError
from pdserve.log import event_log

_log = event_log(__name__)


@dataclass(frozen=True, slots=True)
class StepTiming:
    """When a step ran, on the loop's clock."""

    started_s: float
    ended_s: float

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.started_s


class StepPlanner(Protocol):
    """What a room does around a step. Called on the event loop; must return at once."""

    def plan(self) -> list[StepRow]:
        """Rows of the next step; empty: nothing to do until ``EngineLoop.wake``."""

    def apply(
        self, rows: list[StepRow], results: list[SampledToken | None], timing: StepTiming
    ) -> None:
        """The rows' KV is computed. Sequences that ended during the step are among the rows."""

    def step_failed(self, rows: list[StepRow], error: PdserveError) -> None:
        """The step raised: the KV of every row is undefined. Must not plan them again."""


class EngineLoop:
    """Drives one runner with one planner. ``start`` once, ``close`` once."""

    def __init__(self, runner: StepRunner, planner: StepPlanner, clock: Clock) -> None:
        self._runner = runner
        self._planner = planner
        self._clock = clock
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False
        self._num_steps = 0
        self._busy_since_s: float | None = None
        self._is_stepping = False

    @property
    def num_steps(self) -> int:
        """Steps that ended, failed ones included."""
        return self._num_steps

    @property
    def is_stepping(self) -> bool:
        return self._is_stepping

    @property
    def step_age_s(self) -> float:
        """Seconds the running step has taken so far; 0 when idle; grows for ever once broken."""
        return 0.0 if self._busy_since_s is None else self._clock.now() - self._busy_since_s

    def start(self) -> None:
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(self._work(), name="engine-loop")

    def wake(self) -> None:
        """Something changed: plan again as soon as no step runs."""
        self._wake.set()

    async def ended(self) -> None:
        """Wait until the loop ends; raises what broke it (the planner, never a step)."""
        if self._task is not None:
            await asyncio.wait({self._task})
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error

    async def close(self, grace_s: float = 5.0) -> None:
        """Stop after the running step, or, if it takes longer than ``grace_s``, without it."""
        self._is_closing = True
        self._wake.set()
        task = self._task
        if task is None:
            return
        try:
            _, running = await asyncio.wait({task}, timeout=grace_s)
            if running:
                _log.warning("engine_step_abandoned", age_s=self.step_age_s)
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # logged when it happened

    async def _work(self) -> None:
        try:
            while not self._is_closing:
                self._wake.clear()
                rows = self._planner.plan()
                if rows:
                    await self._step(rows)
                else:
                    await self._wake.wait()
        except Exception as error:
            _log.error("engine_loop_broken", steps=self._num_steps, exc=error)
            self._busy_since_s = self._clock.now()
            raise

    async def _step(self, rows: list[StepRow]) -> None:
        started_s = self._clock.now()
        self._busy_since_s = started_s
        failure: EngineFailure | None = None
        results: list[SampledToken | None] = []
        try:
            self._is_stepping = True
            results = await self._run_pinned(rows)
        except EngineFailure as error:
            failure = error
        except Exception as error:  # whatever a device library raises becomes ours here
            failure = EngineFailure(f"step of {len(rows)} rows: {type(error).__name__}: {error}")
            failure.__cause__ = error
        finally:
            self._is_stepping = False
            self._busy_since_s = None
        self._num_steps += 1
        if failure is None:
            self._planner.apply(rows, results, StepTiming(started_s, self._clock.now()))
        else:
            _log.error("engine_step_failed", rows=len(rows), error=failure, exc=failure)
            self._planner.step_failed(rows, failure)

    async def _run_pinned(self, rows: list[StepRow]) -> list[SampledToken | None]:
        # The leases, not the sequences: a sequence may be given another lease while it waits.
        leases = [row.sequence.lease for row in rows]
        for lease in leases:
            lease.pin()
        try:
            return await self._runner.run(rows)
        finally:
            for lease in leases:
                lease.unpin()
