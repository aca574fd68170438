"""KV reads on one host: messages over a unix socket, KV straight out of the holder's memory.

The holder's pool lies in a memory file (pdserve/memory_file.py). A reader is given a read-only
descriptor of it over a socket, maps it once for all reads of that holder, and copies blocks itself:
one copy. Both sockets are abstract: no file, and what is left of a process that dies is nothing.
That two processes share a host, and a network namespace, is proven by connecting, not by a name.
Only processes of the same user (or root) are served. Linux only.

    ADDRESS          one connection a read
    ADDRESS.memory   sends the descriptor; stays open as long as the holder lives
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator

from kvtransfer.config import MIB
from kvtransfer.transports.base import Handler
from kvtransfer.transports.shm_window import PeerMemories, connected
from kvtransfer.transports.socket_stream import SocketConnection
from pdserve.errors import ConfigError
from pdserve.log import event_log
from pdserve.memory_file import read_only_descriptor
from pdserve.types import Endpoint

TRANSPORT = "shm"
MEMORY_SUFFIX = ".memory"
MAX_MESSAGE_BYTES = 8 * MIB  # KV itself goes another way
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_log = event_log(__name__)


class ShmListener:
    """Serves reads of the memory behind ``memory_fd`` (BlockBuffers.memory_fd)."""

    def __init__(self, memory_fd: int) -> None:
        self._memory_fd = memory_fd
        self._shown_fd: int | None = None
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, handler: Handler) -> Endpoint:
        """Raises ConfigError if the memory cannot be shown or the sockets cannot be had."""
        address = f"pdserve-kv-{secrets.token_hex(16)}"
        try:
            self._shown_fd = read_only_descriptor(self._memory_fd)
            await self._listen(address, lambda streams: self._serve(streams, address, handler))
            await self._listen(address + MEMORY_SUFFIX, self._show_memory)
        except OSError as error:
            await self.close()
            raise ConfigError(f"shm: {error}") from error
        return Endpoint(TRANSPORT, address)

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._shown_fd is not None:
            os.close(self._shown_fd)
            self._shown_fd = None

    async def _listen(self, address: str, serve: Callable[[Streams], Awaitable[None]]) -> None:
        async def serve_one(streams: Streams) -> None:
            if _is_of_this_user(streams[1]):
                await serve(streams)

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # A task of our own: Python 3.11 reports a cancelled one that it made as an error. The
            # socket is given up in a callback, which also runs for a task that never began.
            def ended(task: asyncio.Task[None]) -> None:
                self._tasks.discard(task)
                writer.transport.abort()

            task = asyncio.create_task(serve_one((reader, writer)))
            self._tasks.add(task)
            task.add_done_callback(ended)

        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind("\0" + address)
            self._servers.append(await asyncio.start_unix_server(accepted, sock=sock))
        except BaseException:
            sock.close()
            raise

    async def _serve(self, streams: Streams, address: str, handler: Handler) -> None:
        connection = SocketConnection(f"shm reader of {address}", streams, MAX_MESSAGE_BYTES)
        try:
            await handler(connection)
        finally:
            await connection.close()

    async def _show_memory(self, streams: Streams) -> None:
        """Send the descriptor, then wait until the reader leaves: that the line breaks tells it."""
        assert self._shown_fd is not None
        reader, writer = streams
        with _socket_of(writer) as sock, contextlib.suppress(OSError):  # the reader has gone
            socket.send_fds(sock, [b"m"], [self._shown_fd])
            await reader.read()


class ShmDialer:
    """Keeps one mapping for each holder it has dialled, until that holder is gone."""

    def __init__(self) -> None:
        self._memories = PeerMemories()
        self._open: set[SocketConnection] = set()

    @property
    def num_mapped(self) -> int:
        """Holders whose memory is mapped here."""
        return self._memories.num_mapped

    async def dial(self, address: str) -> SocketConnection:
        self._open = {connection for connection in self._open if not connection.is_closed}
        window = await self._memories.memory(address + MEMORY_SUFFIX)
        sock = await connected(address)
        streams = await asyncio.open_unix_connection(sock=sock)
        connection = SocketConnection(f"shm {address}", streams, MAX_MESSAGE_BYTES, window)
        self._open.add(connection)
        return connection

    async def close(self) -> None:
        for connection in self._open:
            await connection.close()
        self._open.clear()
        self._memories.close()


@contextlib.contextmanager
def _socket_of(writer: asyncio.StreamWriter) -> Iterator[socket.socket]:
    """The socket below a stream, for what streams cannot do."""
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
        yield sock


def _is_of_this_user(writer: asyncio.StreamWriter) -> bool:
    with _socket_of(writer) as sock:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    if uid in (os.getuid(), 0):
        return True
    _log.warning("kv_reader_refused", transport=TRANSPORT, uid=uid, own_uid=os.getuid())
    return False
