"""KV reads over a plain TCP socket: the default between hosts, for its speed.

One connection a read. The messages are those of every other transport; what is different is that
a frame's payload goes from the holder's blocks into the socket and from there into the reader's,
without a buffer or a copy in this process (docs/decisions/0011). A reader that cannot reach the
port takes the holder's next endpoint, which is gRPC's. Not covered: TLS, several sockets a read.
"""

from __future__ import annotations

import asyncio
import socket

from kvtransfer.config import MIB
from kvtransfer.transports.addresses import (
    listen_address,
    split_address,
    told_address,
    warn_beyond_loopback,
)
from kvtransfer.transports.base import Handler
from kvtransfer.transports.tcp_connection import TcpConnection
from pdserve.errors import ConfigError, PeerUnreachable
from pdserve.types import Endpoint

TRANSPORT = "tcp"
MAX_MESSAGE_BYTES = 8 * MIB  # without payloads; headers are far smaller
_LINGER_S = 2.0
_BACKLOG = 128


class TcpListener:
    """Serves reads at ``listen`` (host:port, port 0: any free one).

    ``advertise`` (host or host:port) is what the endpoint says instead of the address listened on.
    """

    def __init__(self, listen: str = "127.0.0.1:0", advertise: str = "") -> None:
        self._listen = listen
        self._advertise = advertise
        self._server: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, handler: Handler) -> Endpoint:
        """Raises ConfigError if the address cannot be bound."""
        host, port = listen_address("stream_listen", self._listen, self._advertise)
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        try:
            server = socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(f"stream_listen: cannot bind {self._listen}: {error}").advise(
                "another process has this port, or the address is not this host's; choose another"
                " with --stream-listen (port 0: any free one)"
            ) from error
        server.setblocking(False)
        self._server = server
        self._accepting = asyncio.create_task(self._accept(server, handler))
        bound: int = server.getsockname()[1]
        warn_beyond_loopback(TRANSPORT, host, bound)
        return Endpoint(TRANSPORT, told_address(host, bound, self._advertise))

    async def close(self) -> None:
        if self._server is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.wait({self._accepting})
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _accept(self, server: socket.socket, handler: Handler) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, peer = await loop.sock_accept(server)
            connection = TcpConnection(
                f"tcp {peer[0]}:{peer[1]}", sock, MAX_MESSAGE_BYTES, lingers=True
            )
            task = asyncio.create_task(_serve(connection, handler))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class TcpDialer:
    """A connection a read."""

    def __init__(self) -> None:
        self._open: set[TcpConnection] = set()

    async def dial(self, address: str) -> TcpConnection:
        self._open = {connection for connection in self._open if not connection.is_closed}
        connection = TcpConnection(f"tcp {address}", await _connected(address), MAX_MESSAGE_BYTES)
        self._open.add(connection)
        return connection

    async def close(self) -> None:
        for connection in self._open:
            await connection.close()
        self._open.clear()


async def _serve(connection: TcpConnection, handler: Handler) -> None:
    try:
        await handler(connection)
        await connection.close()
        await connection.finish(_LINGER_S)
    finally:
        connection.abort()


async def _connected(address: str) -> socket.socket:
    """Raises PeerUnreachable."""
    loop = asyncio.get_running_loop()
    try:
        host, port = split_address(address)
        found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        sock = socket.socket(*found[0][:3])
    except (OSError, ConfigError) as error:
        raise PeerUnreachable(f"tcp {address}: {error}") from error
    sock.setblocking(False)
    try:
        await loop.sock_connect(sock, found[0][4])
    except OSError as error:
        sock.close()
        raise PeerUnreachable(f"tcp {address}: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock
