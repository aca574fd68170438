"""A worker's end of its sessions with routers: greet, take orders, report, leave.

    Hello -> Welcome -> { Submit | Cancel | Meet | Drain }*      receiver
                        { StepReport }* [Goodbye]         sender, the only writer
                        every heartbeat_s                 heartbeat pokes the sender

One session is ``serve_session``; ``stay_connected`` dials again and again. Both know the role only
as a ``WorkerRole`` and the carrier only as a ``WorkerLink``. State tables: docs/protocol.md 1.
Not covered: several sessions with one router at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace

from pdserve.clock import Clock
from pdserve.errors import IncompatibleWorker, PdserveError, ProtocolError, WorkerLost
from pdserve.links import WorkerLink
from pdserve.log import event_log
from pdserve.messages import (
    CacheChanges,
    Cancel,
    Drain,
    Goodbye,
    Meet,
    ResendCache,
    StepReport,
    Submit,
    Welcome,
    WorkerEvent,
)
from pdserve.report_outbox import ReportOutbox
from pdserve.report_pacing import ReportPacing, may_wait
from pdserve.roles import WorkerRole

WELCOME_TIMEOUT_S = 10.0
DIAL_TIMEOUT_S = 10.0
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
REPORT_INTERVAL_S = 0.005

_NO_CONNECTION = "no connection"
_NO_ROUTER = "is a router up at that address (--router), listening beyond loopback (--listen)?"

_log = event_log(__name__)


async def serve_session(
    link: WorkerLink,
    role: WorkerRole,
    clock: Clock,
    *,
    leave: asyncio.Event | None = None,
    report_interval_s: float = 0.0,
) -> str:
    """Serve one router until the session ends; returns why, for people.

    When it returns or raises, the role has been told (``session_ended``), the link is closed and no
    task is left. ``leave``, once set, ends the session with a Goodbye. ``report_interval_s``: see
    ReportPacing; 0: every report leaves at once.

    Raises:
        IncompatibleWorker: the router will not have this worker.
    """
    session = _Session(link, role, clock, report_interval_s)
    try:
        if (problem := await session.greet()) is not None:
            return problem
        return await session.serve(leave)
    finally:
        session.end()
        await link.close()


async def stay_connected(
    dial: Callable[[], Awaitable[WorkerLink]],
    role: WorkerRole,
    clock: Clock,
    *,
    leave: asyncio.Event | None = None,
    router: str = "",
    report_interval_s: float = REPORT_INTERVAL_S,
    jitter: Callable[[], float] = random.random,
) -> None:
    """Keep a session with one router: dial again after 0.1 s, doubling to 5 s, with jitter.

    Returns after a session ends while the role drains, or once ``leave`` is set. A session that
    lasted longer than the longest back-off starts the doubling anew. ``router`` is for log lines.

    Raises:
        IncompatibleWorker: the router will not have this worker; dialling again would not help.
    """
    backoff_s = MIN_BACKOFF_S
    while True:
        dialled_s = clock.now()
        reason = await _dial_and_serve(dial, role, clock, leave, report_interval_s)
        advice = _NO_ROUTER if reason.startswith(_NO_CONNECTION) else None
        _log.info("session_ended", router=router, reason=reason, next=advice)
        if role.status().draining or (leave is not None and leave.is_set()):
            return
        if clock.now() - dialled_s > MAX_BACKOFF_S:
            backoff_s = MIN_BACKOFF_S
        # Between half and all of it, so that the workers of a restarted router spread out.
        await _sleep_unless(leave, clock.sleep(backoff_s * (0.5 + 0.5 * jitter())))
        if leave is not None and leave.is_set():
            return
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


async def _dial_and_serve(
    dial: Callable[[], Awaitable[WorkerLink]],
    role: WorkerRole,
    clock: Clock,
    leave: asyncio.Event | None,
    report_interval_s: float,
) -> str:
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            link = await dial()
    except TimeoutError:
        return f"{_NO_CONNECTION} within {DIAL_TIMEOUT_S:g} s"
    except IncompatibleWorker:
        raise
    except PdserveError as error:
        return f"{_NO_CONNECTION}: {error}"
    return await serve_session(link, role, clock, leave=leave, report_interval_s=report_interval_s)


def _why_it_ended(error: PdserveError) -> str:
    """What a link's error says to people. A router that will not have this worker is told apart:
    every other end, refusals included, is a reason to dial again.

    Raises:
        IncompatibleWorker: ``error`` is one.
    """
    match error:
        case IncompatibleWorker():
            raise error
        case WorkerLost():
            return f"lost: {error}"
        case ProtocolError():
            return f"protocol error: {error}"
        case _:
            return f"refused: {error}"


async def _sleep_unless(event: asyncio.Event | None, sleep: Coroutine[None, None, None]) -> None:
    waits: set[asyncio.Task[object]] = {asyncio.ensure_future(sleep)}
    if event is not None:
        waits.add(asyncio.ensure_future(event.wait()))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _stop(waits)


async def _stop(tasks: set[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Session:
    """One session. Satisfies ``EventSink``."""

    def __init__(
        self, link: WorkerLink, role: WorkerRole, clock: Clock, report_interval_s: float
    ) -> None:
        self._link = link
        self._role = role
        self._clock = clock
        self._outbox = ReportOutbox()
        self._poke = asyncio.Event()
        self._urgent = asyncio.Event()  # something is in the outbox that does not wait
        self._pacing = ReportPacing(report_interval_s)
        self._heartbeat_s = 1.0
        self._last_submit_seq = 0
        self._cache = role.watch_cache()
        self._cache_seq = 0
        self._goodbye: Goodbye | None = None
        self._drain: Drain | None = None
        self._drain_asked = asyncio.Event()
        self._ended = False

    def emit(self, event: WorkerEvent) -> None:
        if not self._ended:
            self._outbox.add(event)
            self._poke.set()
            if not may_wait(event):
                self._urgent.set()

    def status_changed(self) -> None:
        self._poke.set()

    def end(self) -> None:
        self._ended = True
        self._outbox.clear()
        if self._cache is not None:
            self._cache.close()
        self._role.session_ended(self)

    async def greet(self) -> str | None:
        """Hello and Welcome; what went wrong, or None."""
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await self._link.send(self._role.hello)
                welcome = await self._link.receive()
        except TimeoutError:
            return f"no Welcome within {WELCOME_TIMEOUT_S:g} s"
        except PdserveError as error:
            return f"before Welcome: {_why_it_ended(error)}"
        if not isinstance(welcome, Welcome):
            return f"protocol error: {type(welcome).__name__} instead of Welcome"
        self._heartbeat_s = welcome.heartbeat_s
        _log.info("session_joined", router_id=welcome.router_id)
        return None

    async def serve(self, leave: asyncio.Event | None) -> str:
        self._poke.set()  # the first status at once
        tasks = {
            self._start(work)
            for work in (self._receive(), self._send(), self._beat(), self._drain_when_asked())
        }
        if leave is not None:
            tasks.add(self._start(self._leave_when(leave)))
        try:
            pending = tasks
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                reasons = [task.result() for task in done]
                for reason in reasons:
                    if reason is not None:  # receiver and sender return why the session ended
                        return str(reason)
        finally:
            await _stop(tasks)

    def _start(self, work: Coroutine[None, None, object]) -> asyncio.Task[object]:
        return asyncio.create_task(work)

    async def _receive(self) -> str:
        try:
            while True:
                match await self._link.receive():
                    case Submit() as submit:
                        self._last_submit_seq = max(self._last_submit_seq, submit.submit_seq)
                        self._role.submit(submit, self)
                    case Cancel(request_id, epoch, reason):
                        self._role.cancel(request_id, epoch, reason, self)
                    case Meet(peers):
                        self._role.meet(peers, self)
                    case Drain() as drain:
                        self._drain = drain
                        self._drain_asked.set()
                    case ResendCache():
                        if self._cache is not None:
                            self._cache.restart()
                            self._poke.set()
                    case Welcome():
                        return "protocol error: second Welcome"
        except PdserveError as error:
            return _why_it_ended(error)

    async def _send(self) -> str:
        try:
            while True:
                await self._poke.wait()
                await self._link.flushed()  # a router that lags gets several steps in one report
                await self._wait_for_turn()
                self._poke.clear()
                self._urgent.clear()
                # Before the outbox: what is emitted before the goodbye is sent before it.
                goodbye = self._goodbye
                events = self._outbox.take()
                status = replace(self._role.status(), last_submit_seq=self._last_submit_seq)
                await self._link.send(StepReport(events, status, self._cache_changes()))
                if goodbye is not None:
                    await self._link.send(goodbye)
                    return goodbye.reason
        except PdserveError as error:
            return _why_it_ended(error)

    def _cache_changes(self) -> CacheChanges | None:
        delta = None if self._cache is None else self._cache.take()
        if delta is None:
            return None
        if delta.has_more:
            self._poke.set()
        self._cache_seq += 1
        return CacheChanges(self._cache_seq, delta.stored, delta.evicted, delta.is_reset)

    async def _wait_for_turn(self) -> None:
        if not self._urgent.is_set():
            wait_s = self._pacing.wait_s(self._clock.now(), urgent=False)
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._urgent.wait()
        if self._urgent.is_set():
            wait_s = self._pacing.wait_s(self._clock.now(), urgent=True)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
        self._pacing.left(self._clock.now())

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self._heartbeat_s)
            self._poke.set()

    async def _drain_when_asked(self) -> None:
        await self._drain_asked.wait()
        assert self._drain is not None
        grace_s = self._drain.grace_s
        self._role.begin_drain()
        self._poke.set()
        try:
            async with asyncio.timeout(grace_s):
                await self._role.drained()
            self._say_goodbye("drained")
        except TimeoutError:
            self._say_goodbye(f"grace of {grace_s:g} s is over")

    async def _leave_when(self, leave: asyncio.Event) -> None:
        await leave.wait()
        self._say_goodbye("worker stops")

    def _say_goodbye(self, reason: str) -> None:
        self._goodbye = Goodbye(reason)
        self._urgent.set()
        self._poke.set()
