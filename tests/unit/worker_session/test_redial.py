"""How sessions end and what follows: dial again with back-off, or stop for good."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.clock import ManualClock
from pdserve.errors import (
    IncompatibleWorker,
    PdserveError,
    ProtocolError,
    ShuttingDown,
    UnknownMessage,
    WorkerLost,
)
from pdserve.worker_session import MAX_BACKOFF_S, serve_session, stay_connected
from support.scripted_role import WELCOME, BrokenLink, Dialler, FakeRole, submit_message

AT = {  # when the error comes
    "before Welcome": {"welcome": False},
    "receiving": {"welcome": True},
    "sending": {"on_send": True},
}


REASONS = [
    (WorkerLost("gone"), "lost: gone"),
    (ProtocolError("no Hello within 5 s"), "protocol error: no Hello within 5 s"),
    (UnknownMessage("kind 99"), "protocol error: kind 99"),
    (ShuttingDown("the router stops"), "refused: the router stops"),
]


@pytest.mark.parametrize("when", AT)
@pytest.mark.parametrize(("error", "reason"), REASONS, ids=lambda each: type(each).__name__)
async def test_whatever_a_router_answers_the_session_just_ends(
    when: str, error: PdserveError, reason: str
) -> None:
    link, role = BrokenLink(error, **AT[when]), FakeRole()
    told = await serve_session(link, role, ManualClock())
    assert told == (f"before Welcome: {reason}" if when == "before Welcome" else reason)
    assert link.closed
    assert len(role.ended_sinks) == 1


@pytest.mark.parametrize("when", AT)
async def test_refusal_as_incompatible_is_not_retried(when: str) -> None:
    link, role = BrokenLink(IncompatibleWorker("layout"), **AT[when]), FakeRole()

    async def dial() -> BrokenLink:
        return link

    with pytest.raises(IncompatibleWorker, match="layout"):
        await stay_connected(dial, role, ManualClock())
    assert link.closed
    assert len(role.ended_sinks) == 1


@pytest.mark.parametrize("welcomed", [False, True], ids=["greeting", "joined"])
@pytest.mark.parametrize("error", [error for error, _ in REASONS], ids=lambda e: e.code)
async def test_a_refused_worker_dials_again(error: PdserveError, welcomed: bool) -> None:
    clock, dialler, role, leave = ManualClock(), Dialler(), FakeRole(), asyncio.Event()
    task = asyncio.create_task(stay_connected(dialler.dial, role, clock, leave=leave))
    for number in range(3):
        await dialler.next()
        router = dialler.routers[number]
        await router.receive()
        if welcomed:
            await router.send(WELCOME)
            await router.send(submit_message(1))
            await settle()
            role.submits[number][1].status_changed()  # so that it is sending, too
        await router.refuse(error)
        await settle()
        assert not task.done()
        clock.advance(MAX_BACKOFF_S)
    await dialler.next()
    leave.set()
    await dialler.routers[3].close()
    await asyncio.wait_for(task, 10)
    assert len(role.ended_sinks) == 4


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
