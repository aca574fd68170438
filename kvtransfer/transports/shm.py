"""KV reads on one host: messages over a unix socket, KV straight out of the holder's memory.

The holder's pool lies in a memory file (pdserve/memory_file.py). A reader is given a read-only
descriptor of it over a socket, maps it once for all reads of that holder, and copies blocks itself:
one copy. Both sockets are abstract: no file, and what is left of a process that dies is nothing.
That two processes share a host, and a network namespace, is proven by connecting, not by a name.
Only processes of the same user (or root) are served. Linux only.

    ADDRESS          reads, one after another on each socket (socket_stream.py)
    ADDRESS.memory   sends the descriptor; stays open as long as the holder lives
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Coroutine, Iterator

from kvtransfer.config import MIB
from kvtransfer.transports.base import Handler
from kvtransfer.transports.kept_sockets import KeptSockets
from kvtransfer.transports.shm_window import PeerMemories, holder_socket
from kvtransfer.transports.socket_stream import MessageSocket, SocketConnection
from pdserve.errors import ConfigError
from pdserve.log import event_log
from pdserve.memory_file import read_only_descriptor
from pdserve.types import Endpoint
from pdserve.unix_sockets import bound, peer_of

TRANSPORT = "shm"
MEMORY_SUFFIX = ".memory"
MAX_MESSAGE_BYTES = 8 * MIB  # KV itself goes another way

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
            await self._listen_for_reads(address, handler)
            await self._listen_for_memory(address + MEMORY_SUFFIX)
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

    async def _listen_for_reads(self, address: str, handler: Handler) -> None:
        def accepted(sock: MessageSocket) -> None:
            if _is_of_this_user(sock.transport):
                reads = self._serve(sock, f"shm reader of {address}", handler)
                self._start(reads, sock.transport)
            else:
                sock.abort("another user")

        with bound(address) as sock:
            self._servers.append(
                await asyncio.get_running_loop().create_unix_server(
                    lambda: MessageSocket(MAX_MESSAGE_BYTES, on_connected=accepted), sock=sock
                )
            )

    async def _listen_for_memory(self, address: str) -> None:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # A task of our own: Python 3.11 reports a cancelled one that it made as an error.
            if _is_of_this_user(writer.transport):
                self._start(self._show_memory((reader, writer)), writer.transport)
            else:
                writer.transport.abort()

        with bound(address) as sock:
            self._servers.append(await asyncio.start_unix_server(accepted, sock=sock))

    def _start(self, work: Coroutine[None, None, None], transport: asyncio.WriteTransport) -> None:
        if not self._servers:  # closed while this one was being accepted
            work.close()
            transport.abort()
            return

        # The socket is given up in a callback, which also runs for a task that never began.
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            transport.abort()

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def _serve(self, sock: MessageSocket, peer: str, handler: Handler) -> None:
        is_there = True
        while is_there:
            connection = SocketConnection(peer, sock)
            try:
                await handler(connection)
            finally:
                await connection.close()
            is_there = await sock.next_begins()

    async def _show_memory(self, streams: Streams) -> None:
        """Send the descriptor, then wait until the reader leaves: that the line breaks tells it."""
        assert self._shown_fd is not None
        reader, writer = streams
        with (
            _socket_of(writer.transport) as sock,
            contextlib.suppress(OSError),
        ):  # the reader has gone
            socket.send_fds(sock, [b"m"], [self._shown_fd])
            await reader.read()


class ShmDialer:
    """Keeps one mapping and some sockets for each holder it has dialled, until that one is gone."""

    def __init__(self) -> None:
        self._memories = PeerMemories()
        self._sockets = KeptSockets(MAX_MESSAGE_BYTES, _connect)

    @property
    def num_mapped(self) -> int:
        """Holders whose memory is mapped here."""
        return self._memories.num_mapped

    @property
    def num_sockets(self) -> int:
        """For reads, idle ones included."""
        return self._sockets.num_open

    async def dial(self, address: str) -> SocketConnection:
        window = await self._memories.memory(address + MEMORY_SUFFIX)
        return SocketConnection(f"shm {address}", await self._sockets.socket(address), window)

    async def close(self) -> None:
        self._sockets.close()
        self._memories.close()


async def _connect(address: str, protocol: MessageSocket) -> None:
    sock = await holder_socket(address)
    await asyncio.get_running_loop().create_unix_connection(lambda: protocol, sock=sock)


@contextlib.contextmanager
def _socket_of(transport: asyncio.BaseTransport) -> Iterator[socket.socket]:
    """The socket below a transport, for what transports cannot do."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        yield sock


def _is_of_this_user(transport: asyncio.BaseTransport) -> bool:
    with _socket_of(transport) as sock:
        uid = peer_of(sock).uid
    if uid in (os.getuid(), 0):
        return True
    _log.warning("kv_reader_refused", transport=TRANSPORT, uid=uid, own_uid=os.getuid())
    return False
