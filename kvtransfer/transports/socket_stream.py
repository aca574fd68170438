"""Whole messages over a stream socket, one conversation after another.

    length (4 bytes, little-endian) | message       length END_MARK, no message: nothing more from
                                                    this side in this conversation

A conversation is a ``SocketConnection``, to whoever uses it a connection of its own. When both
sides have said END_MARK the socket carries the next one: a connect, an accept and two closes cost
more than what a short KV read says. The side that dialled says it only to a far end that has said
so already; if it closes earlier (cancelled, or the far end is in the middle of something), or
too much is unsent, the socket ends with the conversation. Does not know addresses.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

from kvtransfer.transports.base import Window
from pdserve.errors import PeerUnreachable

END_MARK = 0xFFFFFFFF
WRITE_AHEAD_BYTES = 64 << 10  # unsent, beyond which a sender waits
READ_AHEAD_BYTES = 64 << 10  # arrived and unread, beyond which the far end has to wait

_LENGTH = struct.Struct("<I")
_END = _LENGTH.pack(END_MARK)


class MessageSocket(asyncio.Protocol):
    """One end of the socket. ``max_message_bytes``: a longer one from the far end breaks it.

    ``on_connected`` makes it the listening end, which waits for conversations (``next_begins``);
    the dialling end's is told ``on_idle`` when it may have another one, ``on_lost`` in the end.
    """

    def __init__(
        self,
        max_message_bytes: int,
        *,
        on_connected: Callable[[MessageSocket], None] | None = None,
        on_idle: Callable[[MessageSocket], None] = lambda socket: None,
        on_lost: Callable[[MessageSocket], None] = lambda socket: None,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._on_connected = on_connected
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._partial = bytearray()  # begins with a length
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._holds_back = False  # the far end
        self._changed = asyncio.Event()  # for who receives
        self._is_full = False  # much is unsent
        self._moved = asyncio.Event()  # for who sends
        self._is_idle = True  # between two conversations
        self._near_ended = False
        self._far_ended = False
        self._fault: str | None = None  # why nothing goes any more

    # --- asyncio's side -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        if self._on_connected is not None:
            self._on_connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("stream ended" if exc is None else str(exc))
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._moved.set()

    def data_received(self, data: bytes) -> None:
        if self._partial:
            self._partial += data
            del self._partial[: self._take_messages(self._partial)]
        elif (taken := self._take_messages(data)) < len(data):
            self._partial += memoryview(data)[taken:]

    def _take_messages(self, data: bytes | bytearray) -> int:
        """Returns how many bytes they were."""
        start, size = 0, len(data)
        while size - start >= _LENGTH.size and self._fault is None:
            (length,) = _LENGTH.unpack_from(data, start)
            body = start + _LENGTH.size
            if length == END_MARK:
                self._take_end()
                start = body
                continue
            if length > self._max_message_bytes:
                self.abort(f"message of {length} bytes, limit {self._max_message_bytes}")
                break
            if body + length > size:
                break
            self._take_message(bytes(data[body : body + length]))
            start = body + length
        return start

    def _take_message(self, message: bytes) -> None:
        if self._far_ended or (self._is_idle and self._on_connected is None):
            self.abort("a message after the end")
        elif not self._near_ended:  # else it is of what is over here
            self._inbox.append(message)
            self._inbox_bytes += len(message)
            if self._inbox_bytes > READ_AHEAD_BYTES and not self._holds_back:
                self._holds_back = True
                self.transport.pause_reading()
            self._changed.set()

    def _take_end(self) -> None:
        if self._far_ended or (self._is_idle and not self._inbox):
            self.abort("an end without a beginning")
            return
        self._far_ended = True
        if self._near_ended:
            self._begin_anew()
        self._wake()

    # --- a conversation's side ----------------------------------------------------------------

    @property
    def fault(self) -> str | None:
        """Why nothing can be sent, now or ever."""
        return "stream ended" if self._far_ended else self._fault

    def begin(self) -> None:
        assert self._is_idle, "two conversations at once"
        self._is_idle = False

    async def next_begins(self) -> bool:
        """Wait for the first message of another conversation; False: there will be none."""
        while not (self._is_idle and self._inbox):
            if self._fault is not None:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    async def write(self, message: bytes) -> None:
        """Returns when little is unsent, or nothing can be sent any more."""
        self.transport.write(_LENGTH.pack(len(message)) + message)
        while self._is_full and self.fault is None:
            self._moved.clear()
            await self._moved.wait()

    def take(self) -> bytes | None:
        """The oldest message."""
        if not self._inbox:
            return None
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        if self._holds_back and self._inbox_bytes <= READ_AHEAD_BYTES:
            self._let_come()
        return message

    async def change(self) -> None:
        """Until a message, or the end, has come since the last look."""
        self._changed.clear()
        await self._changed.wait()

    def leave(self) -> None:
        """This side's conversation is over; of what comes still nothing is kept."""
        may_stay = self._far_ended or self._on_connected is not None
        if not may_stay or self._is_full:
            self.abort("closed")
        if self._fault is None:
            self.transport.write(_END)
            self._near_ended = True
            self._drop_inbox()
            if self._far_ended:
                self._begin_anew()
        self._wake()

    def abort(self, why: str) -> None:
        """End the socket at once, whatever is under way."""
        if self._fault is None:
            self._end(why)
            self.transport.abort()

    # --- inside -------------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        self._near_ended = self._far_ended = False
        self._is_idle = True
        self._on_idle(self)

    def _end(self, why: str) -> None:
        self._fault = self._fault or why
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._moved.set()

    def _drop_inbox(self) -> None:
        self._inbox.clear()
        self._inbox_bytes = 0
        self._let_come()

    def _let_come(self) -> None:
        if self._holds_back:
            self._holds_back = False
            if not self.transport.is_closing():
                self.transport.resume_reading()


class SocketConnection:
    """One conversation over an idle socket, from one end."""

    lane = None

    def __init__(self, peer: str, socket: MessageSocket, window: Window | None = None) -> None:
        self._peer = peer
        self._socket = socket
        self._window = window
        self._closed = False
        socket.begin()

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def window(self) -> Window | None:
        return self._window

    async def send(self, data: bytes) -> None:
        self._refuse_if_over()
        await self._socket.write(data)
        self._refuse_if_over()

    async def receive(self) -> bytes:
        while not self._closed:
            message = self._socket.take()
            if message is not None:
                return message
            self._refuse_if_over()
            await self._socket.change()
        raise PeerUnreachable(f"{self._peer}: closed")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._socket.leave()

    def _refuse_if_over(self) -> None:
        why = "closed" if self._closed else self._socket.fault
        if why is not None:
            raise PeerUnreachable(f"{self._peer}: {why}")
