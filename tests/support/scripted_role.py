"""A worker's role without an engine, and what a router would say to it in a session."""

from __future__ import annotations

import asyncio

from pdserve.links import QueueLink, link_pair
from pdserve.messages import (
    PROTOCOL_VERSION,
    Admitted,
    Ended,
    FromWorker,
    Hello,
    Met,
    Peer,
    Submit,
    ToWorker,
    Welcome,
)
from pdserve.roles import CacheFeed, EventSink
from pdserve.types import KVLayout, Leg, RequestId, Role, WorkerId, WorkerLimits, WorkerStatus
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
        self.feed: CacheFeed | None = None
        self.empty = asyncio.Event()

    def submit(self, submit: Submit, sink: EventSink) -> None:
        self.submits.append((submit, sink))
        sink.emit(Admitted(submit.attempt.request.request_id, submit.attempt.epoch, submit.leg))

    def cancel(self, request_id: RequestId, epoch: int, reason: str, sink: EventSink) -> None:
        self.cancels.append((request_id, epoch, reason))
        sink.emit(Ended(request_id, epoch, Leg.PREFILL))

    def meet(self, peers: tuple[Peer, ...], sink: EventSink) -> None:
        for peer in peers:
            sink.emit(Met(peer.worker_id, peer.incarnation, "scripted"))

    def session_ended(self, sink: EventSink) -> None:
        self.ended_sinks.append(sink)

    def status(self) -> WorkerStatus:
        return WorkerStatus(step=len(self.submits), draining=self.draining)

    def watch_cache(self) -> CacheFeed | None:
        return self.feed

    def begin_drain(self) -> None:
        self.draining = True

    async def drained(self) -> None:
        await self.empty.wait()


def submit_message(seq: int, request_id: str = "r1") -> Submit:
    return Submit(seq, Leg.PREFILL, make_attempt([1, 2], request_id=request_id), None)


class BrokenLink:
    """A worker's link on which something raises: the first ``receive``, after the Welcome if there
    is one, or with ``on_send`` the first message after the Hello."""

    def __init__(self, error: Exception, *, welcome: bool = False, on_send: bool = False) -> None:
        self.error = error
        self.welcome = welcome or on_send
        self.on_send = on_send
        self.num_sent = 0
        self.closed = False

    async def send(self, message: FromWorker) -> None:
        await asyncio.sleep(0)
        self.num_sent += 1
        if self.on_send and self.num_sent > 1:
            raise self.error

    async def flushed(self) -> None:
        await asyncio.sleep(0)

    async def receive(self) -> ToWorker:
        if self.welcome:
            self.welcome = False
            return WELCOME
        if self.on_send:
            await asyncio.Event().wait()
        raise self.error

    async def close(self) -> None:
        self.closed = True


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
