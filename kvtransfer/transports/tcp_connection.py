"""Messages and payloads on one TCP socket: each message after its length (4 bytes, little-endian).

Nothing is buffered on either side but what the kernel holds: a payload goes from the sender's
blocks into the socket and from the socket into the receiver's blocks, with one system call for as
much as fits. Calls are tried at once and wait for the socket only when it is full or empty. Knows
no addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pdserve.errors import PeerUnreachable

_LENGTH = struct.Struct("<I")
_MOST_PIECES = 64  # of one system call
_DISCARDED_BYTES = 1 << 16
_TURN_BYTES = 4 << 20  # received without letting others of this loop run
_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S = 10, 5


class TcpConnection:
    """One end. Satisfies ``Connection`` and ``PayloadLane``.

    ``max_message_bytes``: a longer message from the far end breaks the connection. Takes the
    socket over. A ``send`` cancelled in the middle of a message breaks the connection as well.
    ``lingers``: ``close`` ends only the own direction, and the owner calls ``finish`` after it.
    """

    window = None

    def __init__(
        self, peer: str, sock: socket.socket, max_message_bytes: int, *, lingers: bool = False
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_silent_death(sock)
        self._peer = peer
        self._sock = sock
        self._max_message_bytes = max_message_bytes
        self._lingers = lingers
        self._waits: set[asyncio.Future[None]] = set()
        self.is_closed = False
        self.lane = _Lane(self)

    @property
    def peer(self) -> str:
        return self._peer

    async def send(self, data: bytes) -> None:
        await self.send_pieces((_LENGTH.pack(len(data)), data))

    async def receive(self) -> bytes:
        (length,) = _LENGTH.unpack(await self._receive_bytes(_LENGTH.size))
        if length > self._max_message_bytes:
            await self.close()
            limit = self._max_message_bytes
            raise PeerUnreachable(f"{self._peer}: message of {length} bytes, limit {limit}")
        return bytes(await self._receive_bytes(length))

    async def close(self) -> None:
        if self.is_closed:
            return
        self.abort(keep_socket=self._lingers)
        if self._lingers:
            with contextlib.suppress(OSError):  # the far end has gone already
                self._sock.shutdown(socket.SHUT_WR)

    async def finish(self, timeout_s: float) -> None:
        """After ``close``, with ``lingers``: wait until the far end has taken all and closed too.

        A socket closed while its peer still sends drops what that peer has not read yet.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                while await loop.sock_recv(self._sock, _DISCARDED_BYTES):
                    pass
        self._sock.close()

    def abort(self, *, keep_socket: bool = False) -> None:
        """Drop what is on its way; calls that wait raise PeerUnreachable."""
        if not self.is_closed:
            self.is_closed = True
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock.fileno())
            loop.remove_writer(self._sock.fileno())
            for wait in self._waits:
                _set(wait)
        if not keep_socket:
            self._sock.close()

    async def send_pieces(self, pieces: Sequence[bytes | memoryview]) -> None:
        """All of them, one after another."""
        left = deque(memoryview(piece).cast("B") for piece in pieces)
        begun = False
        try:
            while left:
                self._refuse_if_closed()
                try:
                    count = self._sock.sendmsg(itertools.islice(left, _MOST_PIECES))
                except BlockingIOError:
                    await self._writable()
                    continue
                begun = True
                _drop(left, count)
        except OSError as error:
            raise PeerUnreachable(f"{self._peer}: {error}") from error
        except asyncio.CancelledError:
            if begun:
                self.abort()
            raise

    async def receive_pieces(self, out: Sequence[memoryview]) -> None:
        """Fill all of them."""
        in_turn = 0
        for piece in out:
            left = piece.cast("B")
            while left:
                count = await self._receive_some(left)
                left = left[count:]
                in_turn += count
                if in_turn >= _TURN_BYTES:
                    in_turn = 0
                    await asyncio.sleep(0)

    async def _receive_bytes(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        await self.receive_pieces((memoryview(data),))
        return data

    async def _receive_some(self, out: memoryview) -> int:
        while True:
            self._refuse_if_closed()
            try:
                count = self._sock.recv_into(out)
            except BlockingIOError:
                await self._readable()
                continue
            except OSError as error:
                raise PeerUnreachable(f"{self._peer}: {error}") from error
            if not count:
                raise PeerUnreachable(f"{self._peer}: stream ended")
            return count

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._ready(loop.add_reader, loop.remove_reader)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._ready(loop.add_writer, loop.remove_writer)

    async def _ready(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        """Wait until the socket is, or was closed here."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        add(self._sock.fileno(), _set, ready)
        self._waits.add(ready)
        try:
            await ready
        finally:
            self._waits.discard(ready)
            if not self.is_closed:  # the number may be another socket's by now
                remove(self._sock.fileno())

    def _refuse_if_closed(self) -> None:
        if self.is_closed:
            raise PeerUnreachable(f"{self._peer}: closed")


class _Lane:
    def __init__(self, connection: TcpConnection) -> None:
        self._connection = connection

    async def send(self, data: bytes, payload: Sequence[memoryview]) -> None:
        await self._connection.send_pieces((_LENGTH.pack(len(data)), data, *payload))

    async def receive_into(self, out: Sequence[memoryview]) -> None:
        await self._connection.receive_pieces(out)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _drop(left: deque[memoryview], num_bytes: int) -> None:
    """Take so many bytes off the front."""
    while num_bytes:
        piece = left[0]
        if piece.nbytes > num_bytes:
            left[0] = piece[num_bytes:]
            return
        num_bytes -= piece.nbytes
        left.popleft()
    while left and not left[0].nbytes:
        left.popleft()


def _notice_silent_death(sock: socket.socket) -> None:
    """A peer without power or cable is noticed also by an end that only waits."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
