"""Peers are tried at once, each answered once; an end of the session or worker ends the tries."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from decode_worker.meeting import Meeting
from kvtransfer.importer import Importer
from kvtransfer.rate_probe import RateProbe, WayRate
from pdserve.errors import PeerUnreachable, TransferError
from pdserve.messages import Met, Peer
from pdserve.types import Endpoint, KVLayout, WorkerId
from support.recording_sink import RecordingSink

NEAR = Peer(WorkerId("near"), "a", (Endpoint("grpc", "near:1"),))
FAR = Peer(WorkerId("far"), "b", (Endpoint("grpc", "far:1"),))


class Reaching:
    """Satisfies what Meeting needs of Importer: "near" answers, others fail at ``fail``."""

    def __init__(self) -> None:
        self.fail = asyncio.Event()
        self.endpoints = NEAR.endpoints  # where "near" answers
        self.dialers = ("grpc", "shm")

    async def reach(self, endpoints: tuple[Endpoint, ...]) -> str:
        if endpoints != self.endpoints:
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


class Measuring:
    """Satisfies what Meeting needs of RateProbe: by transport, a rate, None or an error."""

    enabled = True

    def __init__(self, answers: dict[str, WayRate | None | TransferError]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    async def measure(self, endpoint: Endpoint, layout: KVLayout) -> WayRate | None:
        self.asked.append(endpoint.transport)
        answer = self._answers[endpoint.transport]
        if isinstance(answer, TransferError):
            raise answer
        return answer


WIDE = Peer(
    WorkerId("near"), "a", NEAR.endpoints,
    KVLayout(num_layers=1, num_kv_heads=1, head_dim=4, block_size=4, dtype="float32"),
)  # fmt: skip


async def test_the_way_in_use_is_measured_first_and_told(
    reaching: Reaching, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ways = (Endpoint("shm", "near:0"), *NEAR.endpoints, Endpoint("pigeon", "loft"))
    reaching.endpoints = ways
    probe = Measuring({"grpc": WayRate("grpc", 2e9, 8_400_000), "shm": WayRate("shm", 5e9, 64)})
    meeting = Meeting(cast(Importer, reaching), cast(RateProbe, probe))
    sink = RecordingSink()
    meeting.meet((replace(WIDE, endpoints=ways),), sink)
    await settle()
    assert probe.asked == ["grpc", "shm"]
    assert sink.events == [
        Met(WorkerId("near"), "a", "grpc"),
        Met(WorkerId("near"), "a", "grpc", "", 2e9, 8_400_000),
    ]
    assert "kv_way_measured peer=near" in caplog.text
    assert "grpc 2.00 GB/s of 8.4 MB" in caplog.text
    assert "shm 5.00 GB/s of 0.0 MB" in caplog.text


@pytest.mark.parametrize("answer", [None, TransferError("nothing to read")])
async def test_a_way_that_was_not_measured_is_no_failure(
    reaching: Reaching, answer: TransferError | None
) -> None:
    probe = Measuring({"grpc": answer})
    meeting = Meeting(cast(Importer, reaching), cast(RateProbe, probe))
    sink = RecordingSink()
    meeting.meet((WIDE, NEAR), sink)  # of the second no layout is known
    await settle()
    assert probe.asked == ["grpc"]
    assert sink.events == [Met(WorkerId("near"), "a", "grpc")] * 2
