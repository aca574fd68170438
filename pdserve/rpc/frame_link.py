"""A link (pdserve/links.py) over a stream socket within one host, for either end of a session.

    frame = length of the payload (4 bytes, little-endian) | kind (1 byte) | payload

A MESSAGE carries one message. END is an end's last frame; its payload is the owner's affair. A
connection that breaks without one means that the far end is gone. There is no task here: messages
are decoded where they arrive and written where they are sent, which is what this saves against a
stream of gRPC (decision 17). A far end that does not read stops the sender, one that takes nothing
for STALLED_WRITE_S is lost. Not covered: peers that die without their kernel's closing the socket,
which within one host does not happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Generic, TypeVar, cast

from pdserve.errors import PdserveError, ProtocolError, WorkerLost
from pdserve.rpc.channel import MAX_MESSAGE_BYTES
from pdserve.rpc.stream_link import BOX_MESSAGES, FLUSH_S, STALLED_WRITE_S

_HEAD = struct.Struct("<IB")

OutT = TypeVar("OutT")
InT = TypeVar("InT")


class FrameKind(IntEnum):
    MESSAGE = 0
    END = 1


class FrameLink(asyncio.Protocol, Generic[OutT, InT]):
    """``ended``: the error that the far end's END stands for. Whoever makes one closes it."""

    def __init__(
        self,
        peer: str,
        encode: Callable[[OutT], bytes],
        decode: Callable[[bytes], InT],
        ended: Callable[[bytes], PdserveError],
        *,
        stalled_write_s: float = STALLED_WRITE_S,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._peer = peer
        self._encode = encode
        self._decode = decode
        self._ended = ended
        self._stalled_write_s = stalled_write_s
        self._max_message_bytes = max_message_bytes
        self._transport: asyncio.Transport | None = None
        self._unparsed = bytearray()
        self._inbox: deque[InT] = deque()
        self._receiver: asyncio.Future[None] | None = None  # waits for a message
        self._is_paused = False  # nothing more is taken from the socket
        self._sending = asyncio.Lock()  # keeps those in order who wait
        self._can_write = asyncio.Event()  # the system has taken all, or the link is over
        self._can_write.set()
        self._over: PdserveError | None = None  # why nothing more will come
        self._fault: ProtocolError | None = None
        self._closed = asyncio.Event()
        self._lost = asyncio.Event()  # the connection is no more

    # --- a link -------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def closed(self) -> asyncio.Event:
        """Set once ``close`` has been called at this end."""
        return self._closed

    @property
    def fault(self) -> ProtocolError | None:
        """What the far end sent that is no message, if it did."""
        return self._fault

    async def send(self, message: OutT) -> None:
        """Write a message; waits while the system has not taken the one before.

        Raises:
            WorkerLost: the session is over.
        """
        data = self._encode(message)
        async with self._sending:
            await self.flushed()
            if self._over is not None:
                raise _as_lost(self._over)
            self._write(FrameKind.MESSAGE, data)

    async def flushed(self) -> None:
        """Until the system has taken what was sent, or the link is over."""
        if self._can_write.is_set():
            return
        try:
            async with asyncio.timeout(self._stalled_write_s):
                await self._can_write.wait()
        except TimeoutError:
            self._break(f"took nothing for {self._stalled_write_s:g} s")

    async def receive(self) -> InT:
        """The next message; one receiver at a time. May be cancelled without losing a message.

        Raises:
            WorkerLost: the session is over and every message that arrived has been received.
            ProtocolError: the far end sent something that is no message, or says that we did.
        """
        while not self._inbox:
            if self._over is not None:
                raise self._over.with_traceback(None)
            if self._receiver is not None:
                raise RuntimeError("two tasks receive from one link")
            self._receiver = asyncio.get_running_loop().create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        message = self._inbox.popleft()
        if self._is_paused and not self._inbox:
            self._is_paused = False
            self._wire.resume_reading()
        return message

    def lose(self, reason: str) -> None:
        """The far end is known to be gone."""
        self._end(WorkerLost(reason))

    async def close(self) -> None:
        """Let what was sent leave (within FLUSH_S), say what ``_bow_out`` says. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._can_write.wait()
                await self._bow_out()
        self._end(WorkerLost("session closed"))

    # --- the owner's --------------------------------------------------------------------------

    async def _bow_out(self) -> None:
        """The worker says END and waits for the router to close; the router waits for its owner."""

    def say_end(self, payload: bytes) -> None:
        """The last frame of this end, if the far end is still there."""
        if not self._lost.is_set():
            self._write(FrameKind.END, payload)

    async def lost(self) -> None:
        """Until the connection is no more."""
        await self._lost.wait()

    async def hang_up(self, flush_s: float = 0.0) -> None:
        """End the connection; what the system has not taken after ``flush_s`` is dropped."""
        if not self._lost.is_set() and flush_s > 0:
            self._wire.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(flush_s):
                    await self._lost.wait()
        if not self._lost.is_set():
            self._wire.abort()
            await self._lost.wait()

    @property
    def socket(self) -> socket.socket:
        """For what a transport does not tell."""
        found: socket.socket = self._wire.get_extra_info("socket")
        return found

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        # Sent is what the system has taken: a far end that lags is noticed at once.
        transport.set_write_buffer_limits(high=0)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        start, end = 0, len(self._unparsed)
        while self._over is None and end - start >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._unparsed, start)
            if length > self._max_message_bytes:
                limit = self._max_message_bytes
                return self._break(f"sent a message of {length} bytes, the limit is {limit}")
            payload = start + _HEAD.size
            if payload + length > end:
                break
            start = payload + length
            self._take(kind, bytes(self._unparsed[payload:start]))
        del self._unparsed[:start]
        if len(self._inbox) >= BOX_MESSAGES and not self._is_paused:
            self._is_paused = True
            self._wire.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost.set()
        self._end(WorkerLost(f"{self._peer}: stream broken" + (f": {error}" if error else "")))

    def pause_writing(self) -> None:
        if self._over is None:
            self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    # --- inside -------------------------------------------------------------------------------

    @property
    def _wire(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected yet"
        return self._transport

    def _write(self, kind: FrameKind, payload: bytes) -> None:
        self._wire.write(_HEAD.pack(len(payload), kind) + payload)

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == FrameKind.MESSAGE:
            try:
                self._inbox.append(self._decode(payload))
            except ProtocolError as error:
                self._fault = error
                self._end(error)
            self._wake_receiver()
        elif kind == FrameKind.END:
            self._end(self._ended(payload))
        else:
            self._break(f"sent a frame of unknown kind {kind}")

    def _break(self, problem: str) -> None:
        self._end(WorkerLost(f"{self._peer} {problem}"))
        self._wire.abort()

    def _end(self, error: PdserveError) -> None:
        """The first call decides why."""
        if self._over is None:
            self._over = error
            self._can_write.set()
            self._wake_receiver()

    def _wake_receiver(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)


def _as_lost(error: PdserveError) -> WorkerLost:
    return WorkerLost(str(error) if isinstance(error, WorkerLost) else f"session over: {error}")
