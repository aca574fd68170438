"""A worker's session with a router over gRPC: the worker dials, the router serves.

    worker: dial_router(address)  --Connect-->  router: WorkerServiceServer(on_link)
            WorkerLink                          RouterLink, given to on_link

Both are the links of pdserve/links.py; docs/protocol.md section 1 says what is said over them. The
stream's bytes are not parsed by gRPC but by pdserve/rpc/codec.py, so that nonsense from the far end
arrives as a ProtocolError where it is received.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from pdserve.clock import Clock, MonotonicClock
from pdserve.errors import IncompatibleWorker, PdserveError, ProtocolError, ShuttingDown, WorkerLost
from pdserve.links import RouterLink
from pdserve.log import event_log
from pdserve.messages import FromWorker, ToWorker
from pdserve.rpc import status
from pdserve.rpc.channel import MAX_MESSAGE_BYTES, open_channel
from pdserve.rpc.codec import (
    decode_from_worker,
    decode_to_worker,
    encode_from_worker,
    encode_to_worker,
)
from pdserve.rpc.stream_link import STALLED_WRITE_S, StreamLink
from pdserve.v1 import worker_service_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["WorkerService"].full_name
DIAL_TIMEOUT_S = 5.0
# How long a session's owner may take to notice that its link is closed.
LEAVE_S = 5.0

_STREAM_BROKEN = (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError)
_log = event_log(__name__)


# --- the worker's end -------------------------------------------------------------------------


class _CallStream:
    """A stream as the caller has it."""

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address

    async def read(self) -> bytes:
        try:
            data = await self._call.read()
        except _STREAM_BROKEN:
            data = grpc.aio.EOF
        if data is grpc.aio.EOF:
            raise await _end_of_call(self._call, self._address)
        return bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            await self._call.write(data)
        except _STREAM_BROKEN as error:
            raise WorkerLost(f"router {self._address}: stream broken") from error

    async def finish(self) -> None:
        try:
            await self._call.done_writing()
        except _STREAM_BROKEN as error:
            raise WorkerLost(f"router {self._address}: stream broken") from error
        await self._call.code()


async def _end_of_call(call: Any, address: str) -> PdserveError:
    """Why a finished call ended, as the worker's ``receive`` raises it."""
    code, text = await call.code(), await call.details() or ""
    if code is grpc.StatusCode.OK:
        return WorkerLost(f"router {address} ended the session")
    metadata = status.plain_metadata(await call.trailing_metadata())
    error = status.error_from_status(code, text, metadata)
    if code is not grpc.StatusCode.FAILED_PRECONDITION:
        return WorkerLost(f"router {address}: {code.name}: {text}")
    return error if isinstance(error, ProtocolError) else IncompatibleWorker(text)


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
) -> GrpcWorkerLink:
    """Open a session with the router at ``address`` (host:port); the caller closes the link.

    Returns once the router has taken the call; Hello is still to be sent. ``clock`` is the one
    deadlines are put on.

    Raises:
        WorkerLost: nobody answered within ``timeout_s``, or the answer was not a router's.
        IncompatibleWorker: the router refused the call with FAILED_PRECONDITION.
    """
    channel = open_channel(address, max_message_bytes)
    call: Any = channel.stream_stream(f"/{SERVICE_NAME}/Connect", None, None)()
    try:
        async with asyncio.timeout(timeout_s):
            await call.initial_metadata()
            if call.done() and await call.code() is not grpc.StatusCode.OK:
                raise await _end_of_call(call, address)
    except TimeoutError:
        await _hang_up(channel, call)
        raise WorkerLost(f"router {address} did not answer within {timeout_s:g} s") from None
    except BaseException:
        await _hang_up(channel, call)
        raise
    return GrpcWorkerLink(channel, call, address, clock or MonotonicClock(), stalled_write_s)


async def _hang_up(channel: grpc.aio.Channel, call: Any) -> None:
    call.cancel()
    await channel.close()


# --- the router's end -------------------------------------------------------------------------


class _ContextStream:
    """A stream as the servicer has it."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self) -> bytes:
        try:
            data = await self._context.read()
        except _STREAM_BROKEN as error:
            raise WorkerLost(f"worker at {self._context.peer()}: stream broken") from error
        if data is grpc.aio.EOF:
            raise WorkerLost(f"worker at {self._context.peer()} ended its side of the session")
        return bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            await self._context.write(data)
        except _STREAM_BROKEN as error:
            raise WorkerLost(f"worker at {self._context.peer()}: stream broken") from error

    async def finish(self) -> None:
        """The status follows when the handler returns."""


class GrpcRouterLink(StreamLink[ToWorker, FromWorker]):
    """Satisfies ``RouterLink``."""

    def __init__(self, context: Any, clock: Clock, stalled_s: float) -> None:
        super().__init__(
            _ContextStream(context),
            lambda message: encode_to_worker(message, clock),
            decode_from_worker,
            peer=context.peer(),
            stalled_write_s=stalled_s,
        )
        self._verdict: PdserveError | None = None

    @property
    def verdict(self) -> PdserveError | None:
        """What the worker is told: why it was refused, else what was wrong with its bytes."""
        return self._verdict or self.fault

    async def refuse(self, error: PdserveError) -> None:
        """Close, so that the worker's ``receive`` raises an error of this class and text."""
        self._verdict = self._verdict or error
        await self.close()


class WorkerServiceServer:
    """Serves ``WorkerService.Connect``: every session is given to ``on_link``.

    The session ends when ``on_link`` returns, and shortly after the link is closed or refused by
    whoever else holds it. A PdserveError out of ``on_link`` refuses the worker with it.
    """

    def __init__(
        self,
        on_link: Callable[[RouterLink], Awaitable[None]],
        clock: Clock | None = None,
        *,
        stalled_write_s: float = STALLED_WRITE_S,
    ) -> None:
        self._on_link = on_link
        self._clock = clock or MonotonicClock()
        self._stalled_write_s = stalled_write_s
        self._links: set[GrpcRouterLink] = set()
        self._closed = False

    @property
    def name(self) -> str:
        return SERVICE_NAME

    @property
    def is_public(self) -> bool:
        return False

    @property
    def num_sessions(self) -> int:
        return len(self._links)

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {"Connect": grpc.stream_stream_rpc_method_handler(self._connect)}

    async def close(self) -> None:
        """Close every session and take no other; their workers go elsewhere."""
        self._closed = True
        await asyncio.gather(*(link.close() for link in tuple(self._links)))

    async def _connect(self, _requests: object, context: Any) -> None:
        if self._closed:
            _say_verdict(context, ShuttingDown("router stops"))
            return
        await context.send_initial_metadata(())  # the worker knows from it that we are there
        link = GrpcRouterLink(context, self._clock, self._stalled_write_s)
        self._links.add(link)
        owner = asyncio.ensure_future(self._on_link(link))
        try:
            await _first_of(owner, link.closed)
        except asyncio.CancelledError:
            link.lose(f"worker at {link.peer} is gone")
            raise
        finally:
            try:
                await self._wind_up(owner, link)
            finally:
                self._links.discard(link)
        _say_verdict(context, link.verdict)

    async def _wind_up(self, owner: asyncio.Future[None], link: GrpcRouterLink) -> None:
        if link.closed.is_set() or not owner.done():
            await asyncio.wait({owner}, timeout=LEAVE_S)
        if not owner.done():
            _log.warning("session_owner_stuck", peer=link.peer)
            owner.cancel()
            await asyncio.wait({owner})
        error = None if owner.cancelled() else owner.exception()
        if isinstance(error, PdserveError) and not isinstance(error, WorkerLost):
            await link.refuse(error)
        await link.close()
        if error is not None and not isinstance(error, PdserveError):
            raise error


async def _first_of(owner: asyncio.Future[None], closed: asyncio.Event) -> None:
    """Returns when either has come; cancels neither the owner nor the event."""
    watch = asyncio.create_task(closed.wait())
    waits: set[asyncio.Future[Any]] = {owner, watch}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        await asyncio.wait({watch})


def _say_verdict(context: Any, verdict: PdserveError | None) -> None:
    if verdict is None:
        return
    context.set_code(status.status_code(verdict))
    context.set_details(status.details(verdict))
    context.set_trailing_metadata(status.error_metadata(verdict))
