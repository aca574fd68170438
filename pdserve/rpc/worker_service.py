"""The worker's port of a router: WorkerService, over gRPC and over a socket of its host.

    Connect           --> a stream, given to the SessionHost (session_host.py)
    FindLocalSession  --> the name of a socket where workers of this host have the same

The dialling end is worker_link.py; docs/protocol.md section 1 says what is said over a session. The
bytes of a session are not parsed by gRPC but by pdserve/rpc/codec.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from pdserve.clock import Clock, MonotonicClock
from pdserve.errors import PdserveError, ShuttingDown, WorkerLost
from pdserve.links import RouterLink
from pdserve.messages import FromWorker, ToWorker
from pdserve.rpc import status
from pdserve.rpc.codec import decode_from_worker, encode_to_worker
from pdserve.rpc.local_sessions import LocalSessions
from pdserve.rpc.session_host import SessionHost
from pdserve.rpc.stream_link import STALLED_WRITE_S, StreamLink
from pdserve.rpc.worker_link import SERVICE_NAME, STREAM_BROKEN
from pdserve.v1 import worker_service_pb2 as pb


class _ContextStream:
    """A stream as the servicer has it."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self) -> bytes:
        try:
            data = await self._context.read()
        except STREAM_BROKEN as error:
            raise WorkerLost(f"worker at {self._context.peer()}: stream broken") from error
        if data is grpc.aio.EOF:
            raise WorkerLost(f"worker at {self._context.peer()} ended its side of the session")
        return bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            await self._context.write(data)
        except STREAM_BROKEN as error:
            raise WorkerLost(f"worker at {self._context.peer()}: stream broken") from error

    async def finish(self) -> None:
        """The status follows when the handler returns."""


class GrpcRouterLink(StreamLink[ToWorker, FromWorker]):
    """Satisfies ``HostedLink``."""

    def __init__(self, context: Any, clock: Clock, stalled_s: float) -> None:
        super().__init__(
            _ContextStream(context),
            lambda message: encode_to_worker(message, clock),
            decode_from_worker,
            peer=context.peer(),
            stalled_write_s=stalled_s,
        )
        self._refusal: PdserveError | None = None

    @property
    def verdict(self) -> PdserveError | None:
        return self._refusal or self.fault

    async def refuse(self, error: PdserveError) -> None:
        self._refusal = self._refusal or error
        await self.close()


class WorkerServiceServer:
    """Serves ``WorkerService``: every session is given to ``on_link``, see SessionHost.

    ``local``: whether workers of this host are told of a socket.
    """

    def __init__(
        self,
        on_link: Callable[[RouterLink], Awaitable[None]],
        clock: Clock | None = None,
        *,
        stalled_write_s: float = STALLED_WRITE_S,
        local: bool = True,
    ) -> None:
        self._clock = clock or MonotonicClock()
        self._stalled_write_s = stalled_write_s
        self._host = SessionHost(on_link)
        self._local = LocalSessions(self._host, self._clock, stalled_write_s) if local else None

    @property
    def name(self) -> str:
        return SERVICE_NAME

    @property
    def is_public(self) -> bool:
        return False

    @property
    def num_sessions(self) -> int:
        return self._host.num_sessions

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {
            "Connect": grpc.stream_stream_rpc_method_handler(self._connect),
            "FindLocalSession": grpc.unary_unary_rpc_method_handler(
                self._find_local,
                request_deserializer=pb.LocalSessionQuery.FromString,
                response_serializer=pb.LocalSessionPlace.SerializeToString,
            ),
        }

    async def close(self) -> None:
        """Close every session and take no other; their workers go elsewhere."""
        await self._host.close()
        if self._local is not None:
            await self._local.close()

    async def _find_local(self, _query: object, _context: Any) -> pb.LocalSessionPlace:
        if self._local is None or self._host.is_closed:
            return pb.LocalSessionPlace()
        return pb.LocalSessionPlace(socket_name=self._local.socket_name())

    async def _connect(self, _requests: object, context: Any) -> None:
        if self._host.is_closed:
            _say_verdict(context, ShuttingDown("router stops"))
            return
        await context.send_initial_metadata(())  # the worker knows from it that we are there
        link = GrpcRouterLink(context, self._clock, self._stalled_write_s)
        verdict = await self._host.serve(link)
        _say_verdict(context, verdict)


def _say_verdict(context: Any, verdict: PdserveError | None) -> None:
    if verdict is None:
        return
    context.set_code(status.status_code(verdict))
    context.set_details(status.details(verdict))
    context.set_trailing_metadata(status.error_metadata(verdict))
