"""Sessions of workers on the router's own host: the same messages over a unix socket.

    worker --FindLocalSession--> router's worker port: name of an abstract socket
    worker --connects--> LocalSessions --link--> SessionHost

That both share a host and a network namespace is proven by connecting, not by a name. The name is
drawn anew by each router, and nothing of it is left when the router dies. Whoever may reach the
worker port of this host may connect, as with gRPC on loopback. Linux only. How a session ends is
said in an END frame (frame_link.py): the worker's is empty, the router's a LocalSessionEnd.
"""

from __future__ import annotations

import asyncio
import secrets
import socket

import grpc
from google.protobuf.message import DecodeError

from pdserve.clock import Clock
from pdserve.errors import PdserveError, ShuttingDown, WorkerLost, all_errors
from pdserve.log import event_log
from pdserve.messages import FromWorker, ToWorker
from pdserve.rpc import status
from pdserve.rpc.codec import (
    decode_from_worker,
    decode_to_worker,
    encode_from_worker,
    encode_to_worker,
)
from pdserve.rpc.frame_link import FrameLink
from pdserve.rpc.session_host import SessionHost
from pdserve.rpc.stream_link import FLUSH_S
from pdserve.unix_sockets import bound, connected, peer_of
from pdserve.v1 import worker_service_pb2 as pb

_log = event_log(__name__)


class LocalWorkerLink(FrameLink[FromWorker, ToWorker]):
    """The worker's end. Satisfies ``WorkerLink``."""

    def __init__(self, router: str, clock: Clock, stalled_s: float) -> None:
        super().__init__(
            f"router {router}",
            encode_from_worker,
            lambda data: decode_to_worker(data, clock),
            lambda payload: _said_by_router(payload, router),
            stalled_write_s=stalled_s,
        )

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            await self.hang_up()

    async def _bow_out(self) -> None:
        self.say_end(b"")
        await self.lost()


class LocalRouterLink(FrameLink[ToWorker, FromWorker]):
    """The router's end. Satisfies ``HostedLink``."""

    def __init__(self, clock: Clock, stalled_s: float) -> None:
        super().__init__(
            "a process of this host",
            lambda message: encode_to_worker(message, clock),
            decode_from_worker,
            lambda _payload: WorkerLost(f"worker at {self.peer} ended its side of the session"),
            stalled_write_s=stalled_s,
        )
        self._refusal: PdserveError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._peer = f"pid {peer_of(self.socket).pid} of this host"

    @property
    def verdict(self) -> PdserveError | None:
        return self._refusal or self.fault

    async def refuse(self, error: PdserveError) -> None:
        self._refusal = self._refusal or error
        await self.close()


class LocalSessions:
    """Listens from the first ``socket_name`` on; every session is given to ``host``."""

    def __init__(self, host: SessionHost, clock: Clock, stalled_write_s: float) -> None:
        self._host = host
        self._clock = clock
        self._stalled_write_s = stalled_write_s
        self._name = ""
        self._listener: socket.socket | None = None
        self._sessions: set[asyncio.Task[None]] = set()

    def socket_name(self) -> str:
        """Empty where no such socket can be had."""
        if self._listener is None:
            name = f"pdserve-session-{secrets.token_hex(16)}"
            try:
                with bound(name) as listener:
                    listener.listen()
            except OSError as error:
                _log.warning("no_local_sessions", error=error)
                return ""
            listener.setblocking(False)
            # Neither a server of asyncio's nor its sock_accept: when they are ended, a connection
            # just taken may be left open with nobody to serve it (Python 3.11).
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)
            self._name, self._listener = name, listener
        return self._name

    async def close(self) -> None:
        """Take no more, and wait for those that run: the host closes them."""
        self._stop_listening()
        if self._sessions:
            await asyncio.wait(set(self._sessions))

    def _stop_listening(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener, self._name = None, ""

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # whoever knocked has gone
            return
        except OSError as error:  # no descriptors left: workers go on by gRPC
            _log.warning("no_local_sessions", error=error)
            self._stop_listening()
            return
        session = asyncio.create_task(self._serve(sock), name="local session")
        self._sessions.add(session)
        session.add_done_callback(self._ended)

    def _ended(self, session: asyncio.Task[None]) -> None:
        self._sessions.discard(session)
        if not session.cancelled() and (error := session.exception()) is not None:
            _log.error("local_session_broken", exc=error)

    async def _serve(self, sock: socket.socket) -> None:
        _, link = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: LocalRouterLink(self._clock, self._stalled_write_s), sock
        )
        verdict: PdserveError | None = None
        try:
            if self._host.is_closed:
                verdict = ShuttingDown("router stops")
            else:
                verdict = await self._host.serve(link)
        finally:
            link.say_end(_end_frame(verdict))
            await link.hang_up(FLUSH_S)


async def connect_local(
    name: str, router: str, clock: Clock, stalled_s: float
) -> LocalWorkerLink | None:
    """A session over the socket of that name; None: it is not of this host, or gone.

    ``router``: its address, for people.
    """
    try:
        sock = await connected(name)
    except OSError:
        return None
    try:
        _, link = await asyncio.get_running_loop().create_unix_connection(
            lambda: LocalWorkerLink(router, clock, stalled_s), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    return link


def _end_frame(verdict: PdserveError | None) -> bytes:
    if verdict is None:
        return b""
    end = pb.LocalSessionEnd(error_code=verdict.code, text=status.details(verdict))
    return end.SerializeToString()


def _said_by_router(payload: bytes, router: str) -> PdserveError:
    """What the worker's ``receive`` raises."""
    try:
        end = pb.LocalSessionEnd.FromString(payload)
    except DecodeError as error:
        return WorkerLost(f"router {router}: its last frame: {error}")
    if not end.error_code:
        return status.session_end(grpc.StatusCode.OK, "", (), router)
    cls = all_errors().get(end.error_code, PdserveError)
    metadata = ((status.ERROR_CODE, end.error_code),)
    return status.session_end(grpc.StatusCode[cls.grpc_code], end.text, metadata, router)
