"""A worker's session over an in-process link: greeting, orders, reports, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pdserve.clock import ManualClock
from pdserve.links import QueueLink, link_pair
from pdserve.messages import (
    Admitted,
    CacheChanges,
    Cancel,
    Drain,
    Ended,
    Failed,
    FromWorker,
    Goodbye,
    Meet,
    Met,
    Peer,
    ResendCache,
    StepReport,
    Tokens,
    ToWorker,
    WorkerEvent,
)
from pdserve.roles import CacheDelta
from pdserve.types import FinishReason, Leg, RequestId, TokenEvent, WorkerId, WorkerStatus
from pdserve.worker_session import serve_session
from support.scripted_role import HELLO, WELCOME, FakeRole, submit_message


class GatedLink(QueueLink[FromWorker, ToWorker]):
    """A worker's link whose carrier takes nothing more while ``gate`` is shut."""

    def __init__(self, link: QueueLink[FromWorker, ToWorker]) -> None:
        self.__dict__.update(link.__dict__)
        self.gate = asyncio.Event()
        self.gate.set()

    async def flushed(self) -> None:
        await self.gate.wait()


class Session:
    """One running ``serve_session`` and the router's end of its link."""

    def __init__(
        self, *, leave: asyncio.Event | None = None, report_interval_s: float = 0.0
    ) -> None:
        self.clock = ManualClock()
        self.role = FakeRole()
        link, self.router = link_pair()
        self.worker = GatedLink(link)
        self.task = asyncio.create_task(
            serve_session(
                self.worker, self.role, self.clock, leave=leave, report_interval_s=report_interval_s
            )
        )

    async def receive(self) -> FromWorker:
        async with asyncio.timeout(10):
            return await self.router.receive()

    async def report(self) -> StepReport:
        message = await self.receive()
        assert isinstance(message, StepReport)
        return message

    async def join(self) -> StepReport:
        assert await self.receive() == HELLO
        await self.router.send(WELCOME)
        return await self.report()

    async def reason(self) -> str:
        async with asyncio.timeout(10):
            return await self.task


@pytest.fixture
async def session() -> AsyncIterator[Session]:
    num_tasks = len(asyncio.all_tasks())
    session = Session()
    yield session
    await session.router.close()
    await asyncio.wait({session.task})
    await asyncio.sleep(0)
    assert len(session.role.ended_sinks) == 1
    assert len(asyncio.all_tasks()) <= num_tasks


async def test_first_report_comes_at_once(session: Session) -> None:
    assert await session.join() == StepReport((), WorkerStatus())


async def test_orders_reach_the_role_and_events_of_one_turn_share_a_report(
    session: Session,
) -> None:
    await session.join()
    await session.router.send(submit_message(1))
    report = await session.report()
    assert report.events == (Admitted(RequestId("r1"), 1, Leg.PREFILL),)
    assert report.status.last_submit_seq == 1
    _, sink = session.role.submits[0]
    events = tuple(Ended(RequestId(f"r{i}"), 1, Leg.PREFILL) for i in range(3))
    for event in events:
        sink.emit(event)
    assert (await session.report()).events == events
    await session.router.send(Cancel(RequestId("r1"), 4, "client left"))
    assert (await session.report()).events == (Ended(RequestId("r1"), 4, Leg.PREFILL),)
    assert session.role.cancels == [(RequestId("r1"), 4, "client left")]


async def test_highest_submit_number_is_echoed(session: Session) -> None:
    await session.join()
    await session.router.send(submit_message(3))
    await session.router.send(submit_message(7, "r2"))
    report = await session.report()
    if len(report.events) == 1:
        report = await session.report()
    assert report.status.last_submit_seq == 7


async def test_status_is_sent_on_change_and_on_heartbeat(session: Session) -> None:
    await session.join()
    await session.router.send(submit_message(1))
    await session.report()
    _, sink = session.role.submits[0]
    sink.status_changed()
    assert (await session.report()).events == ()
    session.clock.advance(1.0)
    assert (await session.report()).events == ()


async def test_events_after_the_end_are_dropped(session: Session) -> None:
    await session.join()
    await session.router.send(submit_message(1))
    await session.report()
    await session.router.close()
    assert "session closed" in await session.reason()
    (sink,) = session.role.ended_sinks
    assert sink is session.role.submits[0][1]
    sink.emit(Ended(RequestId("r1"), 1, Leg.PREFILL))


def tokens(index: int, finish: FinishReason | None = None) -> Tokens:
    return Tokens((TokenEvent(RequestId("r1"), 1, index, 7, finish),))


def together(first: int, second: int, last: WorkerEvent) -> Tokens:
    rest = last.tokens if isinstance(last, Tokens) else ()
    return Tokens(tokens(first).tokens + tokens(second).tokens + rest)


async def _some_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "urgent",
    [
        Failed(RequestId("r1"), 1, Leg.DECODE, "engine_failure", ""),
        tokens(3, FinishReason.LENGTH),
    ],
)
async def test_what_nobody_waits_for_goes_with_what_is_urgent(
    urgent: WorkerEvent,
) -> None:
    session = Session(report_interval_s=3600.0)
    await session.join()
    await session.router.send(submit_message(1))
    await _some_turns()
    _, sink = session.role.submits[0]
    for index in (1, 2):
        sink.emit(tokens(index))
        await _some_turns()
    sink.emit(urgent)
    admitted = Admitted(RequestId("r1"), 1, Leg.PREFILL)
    events = (await session.report()).events
    assert events[0] == admitted and events[-1] in (urgent, together(1, 2, urgent))
    told = [token.index for event in events if isinstance(event, Tokens) for token in event.tokens]
    assert told == [1, 2] + [token.index for token in getattr(urgent, "tokens", ())]
    session.clock.advance(3601.0)
    assert (await session.report()).events == ()  # the heartbeat
    await session.router.close()
    await session.reason()


async def test_a_router_that_lags_gets_what_waited_in_one_report() -> None:
    session = Session()
    session.worker.gate.clear()
    await session.receive()
    await session.router.send(WELCOME)
    await session.router.send(submit_message(1))
    await _some_turns()
    _, sink = session.role.submits[0]
    sent = [tokens(1), tokens(2), tokens(3, FinishReason.LENGTH)]
    for event in sent:
        sink.emit(event)
        await _some_turns()
    session.worker.gate.set()
    admitted = Admitted(RequestId("r1"), 1, Leg.PREFILL)
    assert (await session.report()).events == (admitted, together(1, 2, sent[2]))
    await session.router.close()
    await session.reason()


@pytest.mark.parametrize("message", [Drain(1.0), Cancel(RequestId("r1"), 1, "x")])
async def test_anything_but_welcome_first_is_a_protocol_error(
    session: Session, message: ToWorker
) -> None:
    await session.receive()
    await session.router.send(message)
    assert await session.reason() == f"protocol error: {type(message).__name__} instead of Welcome"


async def test_second_welcome_is_a_protocol_error(session: Session) -> None:
    await session.join()
    await session.router.send(WELCOME)
    assert "second Welcome" in await session.reason()


async def test_no_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdserve.worker_session.WELCOME_TIMEOUT_S", 0.0)
    assert "no Welcome" in await Session().reason()


async def test_meeting_is_the_roles_and_its_answers_are_events(session: Session) -> None:
    await session.join()
    await session.router.send(Meet((Peer(WorkerId("p2"), "b", ()),)))
    assert (await session.report()).events == (Met(WorkerId("p2"), "b", "scripted"),)


async def test_drain_finishes_and_says_goodbye(session: Session) -> None:
    await session.join()
    await session.router.send(submit_message(1))
    await session.report()
    _, sink = session.role.submits[0]
    await session.router.send(Drain(grace_s=30.0))
    assert (await session.report()).status.draining
    sink.emit(Ended(RequestId("r1"), 1, Leg.PREFILL))
    session.role.empty.set()
    reports: list[FromWorker] = []
    while not isinstance(message := await session.receive(), Goodbye):
        reports.append(message)
    events = [event for report in reports for event in report.events]  # type: ignore[union-attr]
    assert events == [Ended(RequestId("r1"), 1, Leg.PREFILL)]
    assert message.reason == "drained"
    assert await session.reason() == "drained"


async def test_drain_ends_with_its_grace(session: Session) -> None:
    await session.join()
    await session.router.send(Drain(grace_s=0.0))
    while not isinstance(message := await session.receive(), Goodbye):
        pass
    assert "grace" in message.reason


async def test_leave_says_goodbye() -> None:
    leave = asyncio.Event()
    session = Session(leave=leave)
    await session.join()
    leave.set()
    while not isinstance(await session.receive(), Goodbye):
        pass
    assert await session.reason() == "worker stops"


class ScriptedFeed:
    """Gives what it is told to give."""

    def __init__(self, *deltas: CacheDelta) -> None:
        self.deltas = list(deltas)
        self.num_restarts = 0
        self.closed = False

    def take(self) -> CacheDelta | None:
        return self.deltas.pop(0) if self.deltas else None

    def restart(self) -> None:
        self.num_restarts += 1

    def close(self) -> None:
        self.closed = True


async def test_cache_changes_are_numbered_and_told_again_when_asked() -> None:
    feed = ScriptedFeed(
        CacheDelta(b"a" * 8, b"", True, True), CacheDelta(b"b" * 8, b"", False, False)
    )
    role = FakeRole()
    role.feed = feed
    worker, router = link_pair()
    task = asyncio.create_task(serve_session(worker, role, ManualClock()))
    async with asyncio.timeout(10):
        await router.receive()
        await router.send(WELCOME)
        reports = [await router.receive() for _ in range(2)]
        feed.deltas.append(CacheDelta(b"", b"c" * 8, True, False))
        await router.send(ResendCache())
        reports.append(await router.receive())
        await router.close()
        await task
    assert [report.cache for report in reports if isinstance(report, StepReport)] == [
        CacheChanges(1, b"a" * 8, b"", True),
        CacheChanges(2, b"b" * 8, b"", False),
        CacheChanges(3, b"", b"c" * 8, True),
    ]
    assert (feed.num_restarts, feed.closed) == (1, True)
