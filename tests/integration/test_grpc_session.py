"""A worker's port by gRPC: bytes that are no messages, and listeners that are no routers."""

from __future__ import annotations

import asyncio
import socket

import grpc
import grpc.aio
import pytest

from pdserve.errors import ProtocolError, WorkerLost
from pdserve.links import RouterLink
from pdserve.rpc.worker_link import SERVICE_NAME, dial_router
from pdserve.rpc.worker_service import WorkerServiceServer
from support.grpc_hosts import RouterEnd, grpc_server, host
from support.tasks import none_left


@pytest.fixture(autouse=True)
async def no_task_is_left() -> object:
    before = asyncio.all_tasks()
    yield
    await none_left(before, ("link",))


async def _raw_call(address: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    """Sends bytes that our codec did not make; the status the router ends the call with."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(f"/{SERVICE_NAME}/Connect")()
        await call.write(data)
        return await call.code(), await call.details()


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x0a\x00"])
async def test_nonsense_is_a_protocol_error_at_both_ends(data: bytes) -> None:
    seen: list[Exception] = []

    async def on_link(link: RouterLink) -> None:
        try:
            await link.receive()
        except ProtocolError as error:
            seen.append(error)

    async with host(on_link) as address:
        code, text = await _raw_call(address, data)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert [str(error) for error in seen] == [text]


async def test_a_message_over_the_limit_ends_the_session_and_the_server_lives() -> None:
    lost = asyncio.Event()

    async def on_link(link: RouterLink) -> None:
        try:
            await link.receive()
        except WorkerLost:
            lost.set()

    async with host(on_link) as address, asyncio.timeout(20):
        code, _ = await _raw_call(address, b"x" * (9 * 2**20))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await lost.wait()
        worker = await dial_router(address)
        await worker.close()


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(WorkerLost):
            await dial_router(address, timeout_s=2)


async def test_a_listener_that_says_nothing() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(WorkerLost, match="did not answer within"),
    ):
        await dial_router(f"127.0.0.1:{mute.getsockname()[1]}", timeout_s=0.3)


async def test_a_closed_service_takes_no_session() -> None:
    service = WorkerServiceServer(RouterEnd().on_link)
    async with grpc_server(service) as server:
        await service.close()
        with pytest.raises(WorkerLost, match="router stops"):
            await dial_router(f"127.0.0.1:{server.port}")


async def test_a_server_without_the_service() -> None:
    async with grpc_server() as server:
        with pytest.raises(WorkerLost, match="UNIMPLEMENTED"):
            await dial_router(f"127.0.0.1:{server.port}")
