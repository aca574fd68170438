"""Keeps one seat occupied: an actor started, watched, and started again with backoff.

    starting -> up -> died or stalled -> (backoff) -> starting ...     retire: drain, close, kill

A new actor is a new incarnation by itself. Ray restarts nothing: what it would repeat it does not
know. Does not know the other seats, nor where this one lies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from cluster.backoff import RestartBackoff
from cluster.child import Say
from cluster.onray.actor import Started
from cluster.onray.calls import ActorGone, answer
from pdserve.clock import Clock
from pdserve.errors import IncompatibleWorker, PdserveError
from pdserve.types import WorkerStatus

_CLOSE_S = 10.0  # for connections to close before an actor is killed


class ActorFailed(PdserveError):
    """An actor did not become ready."""

    code = "actor_failed"


@dataclass(frozen=True, slots=True)
class Patience:
    start_s: float
    stall_s: float
    health_interval_s: float


class SeatKeeper:
    """``start`` or ``adopt``, then it is kept until ``retire`` or ``kill``.

    ``create`` makes the next actor of the seat; ``on_up`` is told of each that is ready.
    """

    def __init__(
        self,
        seat: str,
        create: Callable[[], Any],
        on_up: Callable[[SeatKeeper], None],
        *,
        patience: Patience,
        clock: Clock,
        say: Say,
    ) -> None:
        self.seat = seat
        self.phase = "starting"
        self.problem = ""
        self.started: Started | None = None
        self.status: WorkerStatus | None = None
        self.refused = asyncio.Event()  # a router would not have an actor of this seat, once
        self._create = create
        self._on_up = on_up
        self._patience = patience
        self._clock = clock
        self._say = say
        self._actor: Any = None
        self._keeping: asyncio.Task[None] | None = None
        self._backoff = RestartBackoff()
        self._up_since_s = 0.0

    @property
    def actor(self) -> Any:
        """Handle of the one that serves; None while there is none."""
        return self._actor if self.phase in ("up", "draining") else None

    async def start(self) -> None:
        """The first actor of the seat.

        Raises:
            ActorFailed: it did not become ready in time, or died.
            PdserveError: what kept the role from starting.
        """
        try:
            await self._launch()
        except BaseException:
            self.end_actor()
            raise
        self._keep()

    def adopt(self, actor: Any, started: Started) -> None:
        """Go on with an actor that serves already."""
        self._actor = actor
        self._is_up(started)
        self._keep()

    def start_again(self) -> None:
        """Go on with a seat whose actor died while nobody watched."""
        self.problem = "died unwatched"
        self._keep()

    async def retire(self, grace_s: float) -> None:
        """Let it finish what it holds for up to ``grace_s``, then end it."""
        await self._let_go()
        if self.actor is not None:
            self.phase = "draining"
            await self._before_the_end(self._actor.drain.remote(grace_s), grace_s + _CLOSE_S)
            await self._before_the_end(self._actor.close.remote(), _CLOSE_S)
        self.end_actor()

    async def kill(self) -> None:
        await self._let_go()
        self.end_actor()

    def end_actor(self) -> None:
        """At once; nothing is started after it by itself."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
        self._actor = None
        self.phase = "ended"

    async def _before_the_end(self, call: Any, timeout_s: float) -> None:
        try:
            await answer(call, timeout_s)
        except (PdserveError, TimeoutError) as error:
            self._say(f"{self.seat} is ended without a good end: {error or 'no answer'}")

    async def _let_go(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    async def _launch(self) -> None:
        self.phase = "starting"
        self._actor = self._create()
        try:
            started = await answer(self._actor.start.remote(), self._patience.start_s)
        except TimeoutError:
            raise ActorFailed(
                f"{self.seat} was not ready within {self._patience.start_s:g} s"
            ) from None
        except ActorGone as error:
            raise ActorFailed(f"{self.seat} died at start: {error}") from error
        self._is_up(started)

    def _is_up(self, started: Started) -> None:
        self.started = started
        self.phase, self.problem = "up", ""
        self._up_since_s = self._clock.now()
        self._on_up(self)

    def _keep(self) -> None:
        self._keeping = asyncio.create_task(self._keep_occupied(), name=f"keeper of {self.seat}")

    async def _keep_occupied(self) -> None:
        while True:
            if self.phase == "up":
                self.problem = await self._until_it_fails()
                self.end_actor()
            self.phase = "down"
            self.status = None
            delay_s = self._backoff.delay_s(self._clock.now() - self._up_since_s)
            self._say(f"{self.seat} is down ({self.problem}); starting it again in {delay_s:g} s")
            await self._clock.sleep(delay_s)
            try:
                await self._launch()
            except PdserveError as error:
                self.problem = str(error)
                self.end_actor()
            else:
                self._say(f"{self.seat} is back on {self._where()}")

    def _where(self) -> str:
        assert self.started is not None
        return f"{self.started.place.host}, pid {self.started.place.pid}"

    async def _until_it_fails(self) -> str:
        """Why this actor must be replaced."""
        watches = {
            asyncio.create_task(self._until_it_ends()),
            asyncio.create_task(self._until_it_stalls()),
        }
        try:
            done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _until_it_ends(self) -> str:
        try:
            return str(await answer(self._actor.ended.remote()))
        except PdserveError as error:
            if isinstance(error, IncompatibleWorker):
                self.refused.set()
            return f"{error}"

    async def _until_it_stalls(self) -> str:
        stall_s = self._patience.stall_s
        while True:
            await self._clock.sleep(self._patience.health_interval_s)
            try:
                self.status = await answer(self._actor.health.remote(), stall_s)
            except TimeoutError:
                return f"no answer for {stall_s:g} s"
            except PdserveError as error:
                return str(error)
            if self.status is not None and self.status.step_age_s > stall_s:
                return f"no step for {self.status.step_age_s:.1f} s"
