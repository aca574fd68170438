"""Sessions over a socket of one host: bytes that are no frames, and falling back to gRPC."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from pdserve.clock import MonotonicClock
from pdserve.errors import PdserveError, ProtocolError, WorkerLost
from pdserve.links import RouterLink
from pdserve.rpc.channel import MAX_MESSAGE_BYTES, open_channel
from pdserve.rpc.frame_link import FrameKind
from pdserve.rpc.local_sessions import LocalSessions, LocalWorkerLink, connect_local
from pdserve.rpc.session_host import SessionHost
from pdserve.rpc.worker_link import SERVICE_NAME, GrpcWorkerLink, dial_router
from pdserve.v1 import worker_service_pb2 as pb
from support.grpc_hosts import HELLO, RouterEnd, host
from support.tasks import none_left

HEAD = struct.Struct("<IB")


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await none_left(before, ("link", "local session"))


async def name_at(address: str) -> str:
    async with open_channel(address) as channel:
        find = channel.unary_unary(
            f"/{SERVICE_NAME}/FindLocalSession",
            request_serializer=pb.LocalSessionQuery.SerializeToString,
            response_deserializer=pb.LocalSessionPlace.FromString,
        )
        place = await find(pb.LocalSessionQuery())
        return str(place.socket_name)


async def frames_for(address: str, data: bytes) -> list[tuple[int, bytes]]:
    """Sends bytes to the socket; the frames that come back until the router closes."""
    reader, writer = await asyncio.open_unix_connection("\0" + await name_at(address))
    try:
        writer.write(data)
        received = await reader.read()
    except ConnectionError:
        received = b""
    finally:
        writer.close()
    frames = []
    while received:
        length, kind = HEAD.unpack_from(received)
        frames.append((kind, received[HEAD.size : HEAD.size + length]))
        received = received[HEAD.size + length :]
    return frames


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x0a\x00"])
async def test_a_message_of_nonsense_is_a_protocol_error_at_both_ends(data: bytes) -> None:
    seen: list[ProtocolError] = []

    async def on_link(link: RouterLink) -> None:
        try:
            await link.receive()
        except ProtocolError as error:
            seen.append(error)

    async with host(on_link, "local") as address, asyncio.timeout(20):
        frame = HEAD.pack(len(data), FrameKind.MESSAGE) + data
        ((kind, payload),) = await frames_for(address, frame)
    end = pb.LocalSessionEnd.FromString(payload)
    assert kind == FrameKind.END
    assert [(error.code, str(error)) for error in seen] == [(end.error_code, end.text)]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (HEAD.pack(MAX_MESSAGE_BYTES + 1, FrameKind.MESSAGE), "a message of 8388609 bytes"),
        (HEAD.pack(0, 7), "a frame of unknown kind 7"),
        (b"GET / HTTP/1.1\r\n\r\n", "a message of 542393671 bytes"),
    ],
)
async def test_bytes_that_are_no_frames_end_the_session_and_the_host_lives(
    data: bytes, problem: str
) -> None:
    seen: list[PdserveError] = []

    async def on_link(link: RouterLink) -> None:
        try:
            await link.receive()
        except WorkerLost as error:
            seen.append(error)

    async with host(on_link, "local") as address, asyncio.timeout(20):
        assert await frames_for(address, data) == []
        (error,) = seen
        assert problem in str(error)
        worker = await dial_router(address)
        assert isinstance(worker, LocalWorkerLink)
        await worker.close()


async def test_a_frame_may_come_in_pieces_and_several_at_once() -> None:
    end = RouterEnd()
    async with host(end.on_link, "local") as address, asyncio.timeout(20):
        worker = await dial_router(address)
        await worker.send(HELLO)
        link = await end.links.get()
        assert await link.receive() == HELLO
        reader, writer = await asyncio.open_unix_connection("\0" + await name_at(address))
        data = pb.FromWorker(goodbye=pb.Goodbye(reason="x")).SerializeToString()
        frame = HEAD.pack(len(data), FrameKind.MESSAGE) + data
        other = await end.links.get()
        for byte in frame:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        first = await other.receive()
        writer.write(frame * 3)
        assert [await other.receive() for _ in range(3)] == [first] * 3
        writer.close()
        end.released.set()
        await reader.read()
        await worker.close()


async def test_one_socket_however_many_ask_and_none_after_the_end() -> None:
    clock, end = MonotonicClock(), RouterEnd()
    listener = LocalSessions(SessionHost(end.on_link), clock, 10.0)
    name = listener.socket_name()
    assert name == listener.socket_name()
    worker = await connect_local(name, "r:1", clock, 10.0)
    assert worker is not None
    await end.links.get()
    end.released.set()
    await worker.close()
    await listener.close()
    assert await connect_local(name, "r:1", clock, 10.0) is None


async def test_a_router_that_dies_without_a_word_is_a_broken_stream() -> None:
    name = "pdserve-session-of-a-router-that-dies"
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_unix_server(lambda _, w: accepted.put_nowait(w), "\0" + name)
    worker = await connect_local(name, "r:1", MonotonicClock(), 10.0)
    assert worker is not None
    (await accepted.get()).transport.abort()
    with pytest.raises(WorkerLost, match="router r:1: stream broken"):
        await worker.receive()
    with pytest.raises(WorkerLost, match="stream broken"):
        await worker.send(HELLO)
    await worker.close()
    server.close()


async def test_a_router_without_such_a_socket_is_dialled_by_grpc() -> None:
    end = RouterEnd()
    async with host(end.on_link, "grpc") as address, asyncio.timeout(20):
        assert await name_at(address) == ""
        worker = await dial_router(address)
        assert isinstance(worker, GrpcWorkerLink)
        end.released.set()
        await worker.close()


async def test_a_name_that_leads_nowhere_means_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a worker on another host."""

    def elsewhere(_sessions: LocalSessions) -> str:
        return "pdserve-session-of-another-host"

    monkeypatch.setattr(LocalSessions, "socket_name", elsewhere)
    end = RouterEnd()
    async with host(end.on_link, "local") as address, asyncio.timeout(20):
        worker = await dial_router(address)
        assert isinstance(worker, GrpcWorkerLink)
        await worker.send(HELLO)
        assert await (await end.links.get()).receive() == HELLO
        end.released.set()
        await worker.close()
