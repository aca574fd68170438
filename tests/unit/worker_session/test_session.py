"""A worker's session over an in-process link: greeting, orders, reports, drain, reconnecting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pdserve.clock import ManualClock
from pdserve.errors import IncompatibleWorker, UnknownMessage, WorkerLost
from pdserve.links import QueueLink, link_pair
from pdserve.messages import (
    PROTOCOL_VERSION,
    Admitted,
    Cancel,
    Drain,
    Ended,
    FromWorker,
    Goodbye,
    Hello,
    StepReport,
    Submit,
    ToWorker,
    Welcome,
)
from pdserve.roles import EventSink
from pdserve.types import (
    KVLayout,
    Leg,
    RequestId,
    Role,
    WorkerId,
    WorkerLimits,
    WorkerStatus,
)
from pdserve.worker_session import MAX_BACKOFF_S, serve_session, stay_connected
from support.fake_engine import make_attempt

HELLO = Hello(
    PROTOCOL_VERSION, WorkerId("p1"), "inc", Role.PREFILL, "m", "f",
    KVLayout(1, 1, 8, 16, "float32"), WorkerLimits(64, 4, 16, 1, 300), (), "none",
)  # fmt: skip
WELCOME = Welcome("router", heartbeat_s=1.0)


class FakeRole:
    """Admits everything and keeps what it is asked."""

    def __init__(self) -> None:
        self.hello = HELLO
        self.submits: list[tuple[Submit, EventSink]] = []
        self.cancels: list[tuple[RequestId, int, str]] = []
        self.ended_sinks: list[EventSink] = []
        self.draining = False
        self.empty = asyncio.Event()

    def submit(self, submit: Submit, sink: EventSink) -> None:
        self.submits.append((submit, sink))
        sink.emit(Admitted(submit.attempt.request.request_id, submit.attempt.epoch, submit.leg))

    def cancel(self, request_id: RequestId, epoch: int, reason: str, sink: EventSink) -> None:
        self.cancels.append((request_id, epoch, reason))
        sink.emit(Ended(request_id, epoch, Leg.PREFILL))

    def session_ended(self, sink: EventSink) -> None:
        self.ended_sinks.append(sink)

    def status(self) -> WorkerStatus:
        return WorkerStatus(step=len(self.submits), draining=self.draining)

    def begin_drain(self) -> None:
        self.draining = True

    async def drained(self) -> None:
        await self.empty.wait()


def submit_message(seq: int, request_id: str = "r1") -> Submit:
    return Submit(seq, Leg.PREFILL, make_attempt([1, 2], request_id=request_id), None)


class Session:
    """One running ``serve_session`` and the router's end of its link."""

    def __init__(self, *, leave: asyncio.Event | None = None) -> None:
        self.clock = ManualClock()
        self.role = FakeRole()
        worker, self.router = link_pair()
        self.task = asyncio.create_task(serve_session(worker, self.role, self.clock, leave=leave))

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


class BrokenLink:
    """A worker's link whose first ``receive`` raises."""

    def __init__(self, error: Exception, *, welcome: bool = False) -> None:
        self.error = error
        self.welcome = welcome
        self.closed = False

    async def send(self, message: FromWorker) -> None:
        await asyncio.sleep(0)

    async def receive(self) -> ToWorker:
        if self.welcome:
            self.welcome = False
            return WELCOME
        raise self.error

    async def close(self) -> None:
        self.closed = True


async def test_nonsense_from_the_router_ends_the_session() -> None:
    link, role = BrokenLink(UnknownMessage("kind 99"), welcome=True), FakeRole()
    reason = await serve_session(link, role, ManualClock())
    assert reason == "protocol error: kind 99"
    assert link.closed
    assert len(role.ended_sinks) == 1


@pytest.mark.parametrize("welcome", [False, True])
async def test_refusal_as_incompatible_is_not_retried(welcome: bool) -> None:
    link, role = BrokenLink(IncompatibleWorker("layout"), welcome=welcome), FakeRole()

    async def dial() -> BrokenLink:
        return link

    with pytest.raises(IncompatibleWorker, match="layout"):
        await stay_connected(dial, role, ManualClock())
    assert link.closed
    assert len(role.ended_sinks) == 1


class Dialler:
    """Counts dials; fails with ``error`` or hands out a fresh link."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.num_dials = 0
        self.routers: list[QueueLink[ToWorker, FromWorker]] = []
        self.dialled = asyncio.Event()

    async def dial(self) -> QueueLink[FromWorker, ToWorker]:
        self.num_dials += 1
        self.dialled.set()
        if self.error is not None:
            raise self.error
        worker, router = link_pair()
        self.routers.append(router)
        return worker

    async def next(self) -> None:
        async with asyncio.timeout(10):
            await self.dialled.wait()
        self.dialled.clear()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_redial_backs_off_to_the_bound_and_starts_anew_after_a_long_session() -> None:
    clock, dialler, role = ManualClock(), Dialler(), FakeRole()
    dialler.error = WorkerLost("refused")
    task = asyncio.create_task(stay_connected(dialler.dial, role, clock, jitter=lambda: 1.0))
    await dialler.next()
    for delay_s in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        await settle()
        clock.advance(delay_s * 0.99)
        await settle()
        assert not dialler.dialled.is_set()
        if delay_s == 5.0 and dialler.num_dials == 8:
            dialler.error = None
        clock.advance(delay_s * 0.02)
        await dialler.next()
    await settle()
    clock.advance(MAX_BACKOFF_S + 1)
    await dialler.routers[0].close()
    await settle()
    clock.advance(0.11)
    await dialler.next()
    task.cancel()
    await asyncio.wait({task})
    assert len(role.ended_sinks) == 2


async def test_no_redial_while_draining() -> None:
    clock, dialler, role = ManualClock(), Dialler(), FakeRole()
    task = asyncio.create_task(stay_connected(dialler.dial, role, clock))
    await dialler.next()
    role.begin_drain()
    await settle()
    await dialler.routers[0].close()
    await asyncio.wait_for(task, 10)
    assert dialler.num_dials == 1


async def test_leave_ends_the_back_off() -> None:
    clock, dialler, role, leave = ManualClock(), Dialler(), FakeRole(), asyncio.Event()
    dialler.error = WorkerLost("refused")
    task = asyncio.create_task(stay_connected(dialler.dial, role, clock, leave=leave))
    await dialler.next()
    await settle()
    leave.set()
    await asyncio.wait_for(task, 10)
    assert dialler.num_dials == 1
