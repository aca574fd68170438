"""The worker's end of a session with a router: over a socket within one host, else over gRPC.

    dial_router(address) --FindLocalSession--> a router of this host: local_sessions.py
                         --Connect-----------> any other: GrpcWorkerLink

The other end is worker_service.py. Both links are those of pdserve/links.py; docs/protocol.md
section 1 says what is said over them. The bytes of a session are not parsed by gRPC but by
pdserve/rpc/codec.py, so that nonsense from the far end arrives as a ProtocolError where it is
received.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from pdserve.clock import Clock, MonotonicClock
from pdserve.errors import PdserveError, WorkerLost
from pdserve.links import WorkerLink
from pdserve.messages import FromWorker, ToWorker
from pdserve.rpc import status
from pdserve.rpc.channel import MAX_MESSAGE_BYTES, open_channel
from pdserve.rpc.codec import decode_to_worker, encode_from_worker
from pdserve.rpc.local_sessions import connect_local
from pdserve.rpc.stream_link import STALLED_WRITE_S, StreamLink
from pdserve.v1 import worker_service_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["WorkerService"].full_name
DIAL_TIMEOUT_S = 5.0

STREAM_BROKEN = (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError)


class _CallStream:
    """A stream as the caller has it."""

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address

    async def read(self) -> bytes:
        try:
            data = await self._call.read()
        except STREAM_BROKEN:
            data = grpc.aio.EOF
        if data is grpc.aio.EOF:
            raise await _end_of_call(self._call, self._address)
        return bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            await self._call.write(data)
        except STREAM_BROKEN as error:
            raise WorkerLost(f"router {self._address}: stream broken") from error

    async def finish(self) -> None:
        try:
            await self._call.done_writing()
        except STREAM_BROKEN as error:
            raise WorkerLost(f"router {self._address}: stream broken") from error
        await self._call.code()


async def _end_of_call(call: Any, address: str) -> PdserveError:
    """Why a finished call ended, as the worker's ``receive`` raises it."""
    code, text = await call.code(), await call.details() or ""
    metadata = status.plain_metadata(await call.trailing_metadata())
    return status.session_end(code, text, metadata, address)


class GrpcWorkerLink(StreamLink[FromWorker, ToWorker]):
    """Satisfies ``WorkerLink``. Owns its channel."""

    def __init__(
        self, channel: grpc.aio.Channel, call: Any, address: str, clock: Clock, stalled_s: float
    ) -> None:
        self._channel = channel
        self._call = call
        super().__init__(
            _CallStream(call, address),
            encode_from_worker,
            lambda data: decode_to_worker(data, clock),
            peer=address,
            stalled_write_s=stalled_s,
        )

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._call.cancel()
            await self._channel.close()


async def dial_router(
    address: str,
    clock: Clock | None = None,
    *,
    timeout_s: float = DIAL_TIMEOUT_S,
    stalled_write_s: float = STALLED_WRITE_S,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> WorkerLink:
    """Open a session with the router at ``address`` (host:port); the caller closes the link.

    Returns once the router has taken the call or connection; Hello is still to be sent. ``clock``
    is the one deadlines are put on.

    Raises:
        WorkerLost: nobody answered within ``timeout_s``, or the answer was not a router's.
        IncompatibleWorker: the router refused the call with FAILED_PRECONDITION.
    """
    clock = clock or MonotonicClock()
    channel = open_channel(address, max_message_bytes)
    call: Any = None
    try:
        async with asyncio.timeout(timeout_s):
            name = await _local_socket(channel)
            local = await connect_local(name, address, clock, stalled_write_s) if name else None
            if local is None:
                call = channel.stream_stream(f"/{SERVICE_NAME}/Connect", None, None)()
                await call.initial_metadata()
                if call.done() and await call.code() is not grpc.StatusCode.OK:
                    raise await _end_of_call(call, address)
    except TimeoutError:
        await _hang_up(channel, call)
        raise WorkerLost(f"router {address} did not answer within {timeout_s:g} s") from None
    except BaseException:
        await _hang_up(channel, call)
        raise
    if local is None:
        return GrpcWorkerLink(channel, call, address, clock, stalled_write_s)
    try:
        await channel.close()
    except BaseException:
        await local.hang_up()
        raise
    return local


async def _local_socket(channel: grpc.aio.Channel) -> str:
    """Name of the socket for workers of the router's host; empty: it tells none."""
    find: Any = channel.unary_unary(
        f"/{SERVICE_NAME}/FindLocalSession",
        request_serializer=pb.LocalSessionQuery.SerializeToString,
        response_deserializer=pb.LocalSessionPlace.FromString,
    )
    try:
        place = await find(pb.LocalSessionQuery())
    except grpc.aio.AioRpcError:
        return ""  # why it cannot be reached, if so, is what Connect will say
    return str(place.socket_name)


async def _hang_up(channel: grpc.aio.Channel, call: Any) -> None:
    if call is not None:
        call.cancel()
    await channel.close()
