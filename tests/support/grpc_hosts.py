"""Servers and sessions on loopback for the tests of the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pdserve.links import RouterLink, WorkerLink
from pdserve.messages import PROTOCOL_VERSION, Goodbye, Hello, StepReport
from pdserve.rpc.server import GrpcServer, GrpcService
from pdserve.rpc.worker_link import dial_router
from pdserve.rpc.worker_service import WorkerServiceServer
from pdserve.types import KVLayout, Role, WorkerId, WorkerLimits, WorkerStatus

HELLO = Hello(
    protocol_version=PROTOCOL_VERSION,
    worker_id=WorkerId("w0"),
    incarnation="i0",
    role=Role.PREFILL,
    model_name="tiny",
    model_fingerprint="f",
    layout=KVLayout(2, 2, 8, 16, "float32"),
    limits=WorkerLimits(512, 64, 32, 8, 300),
    endpoints=(),
    device="cpu",
)
GOODBYE = Goodbye("test")


def report(step: int) -> StepReport:
    return StepReport((), WorkerStatus(step=step))


@asynccontextmanager
async def grpc_server(*services: GrpcService) -> AsyncIterator[GrpcServer]:
    server = GrpcServer("127.0.0.1:0", services)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class RouterEnd:
    """The router's side of one session, handed to the test; the session lasts until ``release``."""

    def __init__(self) -> None:
        self.links: asyncio.Queue[RouterLink] = asyncio.Queue()
        self.released = asyncio.Event()
        self.num_over = 0

    async def on_link(self, link: RouterLink) -> None:
        self.links.put_nowait(link)
        try:
            await self.released.wait()
        finally:
            self.num_over += 1


@asynccontextmanager
async def session(
    carrier: str, stalled_write_s: float = 10.0
) -> AsyncIterator[tuple[WorkerLink, RouterLink, RouterEnd]]:
    """(worker's end, router's end, who holds it) over a real socket."""
    end = RouterEnd()
    async with host(end.on_link, carrier, stalled_write_s) as address:
        worker = await dial_router(address)
        try:
            async with asyncio.timeout(10):
                yield worker, await end.links.get(), end
        finally:
            end.released.set()
            await worker.close()


@asynccontextmanager
async def host(
    on_link: Callable[[RouterLink], Awaitable[None]],
    carrier: str = "grpc",
    stalled_write_s: float = 10.0,
) -> AsyncIterator[str]:
    """The address of a router whose sessions go to ``on_link``; leaves no session behind.

    ``carrier``: "grpc", or "local" for the socket that workers of one host find by themselves.
    """
    service = WorkerServiceServer(
        on_link, stalled_write_s=stalled_write_s, local=carrier == "local"
    )
    async with grpc_server(service) as server:
        yield f"127.0.0.1:{server.port}"
    assert service.num_sessions == 0
