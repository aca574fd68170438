"""Peers are tried at once, each answered once; an end of the session or worker ends the tries."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from decode_worker.meeting import Meeting
from kvtransfer.importer import Importer
from pdserve.errors import PeerUnreachable
from pdserve.messages import Met, Peer
from pdserve.types import Endpoint, WorkerId
from support.recording_sink import RecordingSink

NEAR = Peer(WorkerId("near"), "a", (Endpoint("grpc", "near:1"),))
FAR = Peer(WorkerId("far"), "b", (Endpoint("grpc", "far:1"),))


class Reaching:
    """Satisfies what Meeting needs of Importer: "near" answers, others fail at ``fail``."""

    def __init__(self) -> None:
        self.fail = asyncio.Event()

    async def reach(self, endpoints: tuple[Endpoint, ...]) -> str:
        if endpoints != NEAR.endpoints:
            await self.fail.wait()
            raise PeerUnreachable(f"grpc {endpoints[0].address}: cannot connect")
        return "grpc"


@pytest.fixture
def reaching() -> Reaching:
    return Reaching()


@pytest.fixture
def meeting(reaching: Reaching) -> Meeting:
    return Meeting(cast(Importer, reaching))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_peer_is_answered_when_it_is_known(meeting: Meeting, reaching: Reaching) -> None:
    sink = RecordingSink()
    meeting.meet((FAR, NEAR), sink)
    await settle()
    assert sink.events == [Met(WorkerId("near"), "a", "grpc")]
    reaching.fail.set()
    await settle()
    assert sink.events[1:] == [Met(WorkerId("far"), "b", "", "grpc far:1: cannot connect")]


async def test_tries_end_with_their_session_and_with_the_worker(
    meeting: Meeting, reaching: Reaching
) -> None:
    before = asyncio.all_tasks()
    mine, other = RecordingSink(), RecordingSink()
    meeting.meet((FAR,), mine)
    meeting.meet((FAR,), other)
    await settle()
    meeting.session_ended(mine)
    reaching.fail.set()
    await settle()
    assert mine.events == []
    assert len(other.events) == 1
    reaching.fail.clear()
    meeting.meet((FAR,), other)
    await meeting.close()
    assert asyncio.all_tasks() == before
    assert len(other.events) == 1
