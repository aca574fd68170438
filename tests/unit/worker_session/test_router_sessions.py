"""One worker and several routers, which join and leave while it runs."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.clock import ManualClock
from pdserve.errors import IncompatibleWorker
from pdserve.links import QueueLink, link_pair
from pdserve.messages import FromWorker, Goodbye, StepReport, ToWorker
from pdserve.router_sessions import RouterSessions
from support.scripted_role import HELLO, WELCOME, FakeRole, submit_message

RouterEnd = QueueLink[ToWorker, FromWorker]


class Routers:
    """What dials in, by address."""

    def __init__(self) -> None:
        self.links: dict[str, asyncio.Queue[RouterEnd]] = {}
        self.role = FakeRole()
        self.sessions = RouterSessions(self.role, self.dial, ManualClock())

    async def dial(self, address: str) -> QueueLink[FromWorker, ToWorker]:
        worker, router = link_pair()
        self.links.setdefault(address, asyncio.Queue()).put_nowait(router)
        return worker

    async def greeted(self, address: str) -> RouterEnd:
        async with asyncio.timeout(10):
            link = await self.links.setdefault(address, asyncio.Queue()).get()
            assert await link.receive() == HELLO
            await link.send(WELCOME)
            assert isinstance(await link.receive(), StepReport)
        return link


async def test_a_new_router_joins_before_the_old_one_is_left() -> None:
    routers = Routers()
    await routers.sessions.serve(["a"])
    a = await routers.greeted("a")
    changed = asyncio.create_task(routers.sessions.serve(["b"]))
    b = await routers.greeted("b")
    messages: list[FromWorker] = []
    while not messages or not isinstance(messages[-1], Goodbye):
        async with asyncio.timeout(10):
            messages.append(await a.receive())
    await changed
    assert routers.sessions.routers == ("b",)
    await b.send(submit_message(1))
    async with asyncio.timeout(10):
        report = await b.receive()
    assert isinstance(report, StepReport)
    assert len(report.events) == 1
    assert len(routers.role.ended_sinks) == 1
    await routers.sessions.close()


async def test_a_router_that_stays_keeps_its_session() -> None:
    routers = Routers()
    await routers.sessions.serve(["a"])
    await routers.greeted("a")
    await routers.sessions.serve(["a", "b"])
    await routers.greeted("b")
    await routers.sessions.serve(["b", "a"])
    assert routers.links["a"].empty()
    assert not routers.role.ended_sinks
    await routers.sessions.close()
    assert len(routers.role.ended_sinks) == 2


async def test_it_ends_when_the_last_session_has_ended_for_good() -> None:
    routers = Routers()
    await routers.sessions.serve(["a", "b"])
    await routers.greeted("a")
    await routers.greeted("b")
    ended = asyncio.create_task(routers.sessions.ended())
    await routers.sessions.serve(["a"])
    assert not ended.done()
    await routers.sessions.leave()
    async with asyncio.timeout(10):
        await ended
    await routers.sessions.close()


async def test_a_refusal_by_any_router_is_raised_also_later() -> None:
    routers = Routers()
    await routers.sessions.serve(["a", "b"])
    await routers.greeted("a")
    b = await routers.links.setdefault("b", asyncio.Queue()).get()
    await b.refuse(IncompatibleWorker("another model"))
    with pytest.raises(IncompatibleWorker, match="another model"):
        await routers.sessions.ended()
    with pytest.raises(IncompatibleWorker, match="another model"):
        await routers.sessions.ended()
    await routers.sessions.close()
