"""A link over a stand-in of a byte stream: ends, faults, stalls, and no task left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pdserve.errors import PdserveError, ProtocolError, UnknownMessage, WorkerLost
from pdserve.rpc.stream_link import BOX_MESSAGES, StreamLink


class ScriptedStream:
    """Hands out what the test feeds; keeps what is written, unless told to stand still."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes | PdserveError] = asyncio.Queue()
        self.written: list[bytes] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.finished = False

    async def read(self) -> bytes:
        item = await self.incoming.get()
        if isinstance(item, PdserveError):
            raise item
        return item

    async def write(self, data: bytes) -> None:
        await self.may_write.wait()
        self.written.append(data)

    async def finish(self) -> None:
        self.finished = True


def _decode(data: bytes) -> str:
    if data == b"nonsense":
        raise UnknownMessage("of an unknown kind")
    return data.decode()


@pytest.fixture
def stream() -> ScriptedStream:
    return ScriptedStream()


@pytest.fixture
async def link(stream: ScriptedStream) -> AsyncIterator[StreamLink[str, str]]:
    link = StreamLink(stream, str.encode, _decode, peer="test", stalled_write_s=0.05)
    yield link
    await link.close()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("link-")] == []


async def test_messages_pass_in_order(stream: ScriptedStream, link: StreamLink[str, str]) -> None:
    for number in range(10):
        await link.send(f"out {number}")
        stream.incoming.put_nowait(b"in %d" % number)
    assert [await link.receive() for _ in range(10)] == [f"in {number}" for number in range(10)]
    await link.close()
    assert stream.written == [b"out %d" % number for number in range(10)]
    assert stream.finished


async def test_flushed_waits_for_the_stream_to_take_what_was_sent(
    stream: ScriptedStream, link: StreamLink[str, str]
) -> None:
    await link.flushed()
    stream.may_write.clear()
    await link.send("one")
    await link.send("two")
    waiting = asyncio.create_task(link.flushed())
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.may_write.set()
    await waiting
    assert stream.written == [b"one", b"two"]


async def test_flushed_ends_with_the_link(
    stream: ScriptedStream, link: StreamLink[str, str]
) -> None:
    stream.may_write.clear()
    await link.send("never taken")
    await link.flushed()
    with pytest.raises(WorkerLost, match="took nothing"):
        await link.send("late")
    await link.flushed()


async def test_what_arrived_before_the_end_is_received(
    stream: ScriptedStream, link: StreamLink[str, str]
) -> None:
    stream.incoming.put_nowait(b"last")
    stream.incoming.put_nowait(WorkerLost("stream broken"))
    assert await link.receive() == "last"
    for _ in range(2):
        with pytest.raises(WorkerLost, match="stream broken"):
            await link.receive()
    with pytest.raises(WorkerLost, match="stream broken"):
        await link.send("late")


async def test_a_fault_is_received_and_remembered(
    stream: ScriptedStream, link: StreamLink[str, str]
) -> None:
    stream.incoming.put_nowait(b"nonsense")
    with pytest.raises(UnknownMessage):
        await link.receive()
    assert isinstance(link.fault, ProtocolError)
    with pytest.raises(WorkerLost, match="session over"):
        await link.send("late")


async def test_a_stalled_write_loses_the_link(
    stream: ScriptedStream, link: StreamLink[str, str]
) -> None:
    stream.may_write.clear()
    await link.send("stuck")
    with pytest.raises(WorkerLost, match="took nothing for 0.05 s"):
        await link.receive()


async def test_a_full_outbox_holds_the_sender_back(stream: ScriptedStream) -> None:
    link = StreamLink(stream, str.encode, _decode, peer="test")
    stream.may_write.clear()
    num_sent = 0

    async def send_all() -> None:
        nonlocal num_sent
        for number in range(BOX_MESSAGES + 10):
            await link.send(str(number))
            num_sent += 1

    sender = asyncio.create_task(send_all())
    for _ in range(BOX_MESSAGES * 2):
        await asyncio.sleep(0)
    # What the writer holds in its hand is in no box.
    assert num_sent <= BOX_MESSAGES + 1 and not sender.done()
    stream.may_write.set()
    await sender
    await link.close()
    assert stream.written == [str(number).encode() for number in range(BOX_MESSAGES + 10)]


async def test_close_lets_go_of_a_stream_that_stands_still(stream: ScriptedStream) -> None:
    link = StreamLink(stream, str.encode, _decode, peer="test", stalled_write_s=0.01)
    stream.may_write.clear()
    await link.send("stuck")
    await link.close()
    assert stream.written == []
    with pytest.raises(WorkerLost):
        await link.receive()


async def test_losing_a_link_wakes_the_receiver(link: StreamLink[str, str]) -> None:
    receiver = asyncio.create_task(link.receive())
    await asyncio.sleep(0)
    link.lose("process died")
    with pytest.raises(WorkerLost, match="process died"):
        await receiver
