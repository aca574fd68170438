"""A link (pdserve/links.py) over a bidirectional stream of bytes, for either end of a session.

    send --encode--> outbox --writer task--> stream.write
    receive <-- inbox <--decode-- reader task <-- stream.read

Each box holds a bounded number of messages: a far end that does not read stops the sender, one that
takes nothing for STALLED_WRITE_S is lost. The reader task decodes on arrival, since time left in a
message runs from there. This module does not know gRPC: a stream is three functions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from pdserve.errors import PdserveError, ProtocolError, WorkerLost
from pdserve.rpc.mailbox import Mailbox

BOX_MESSAGES = 256
STALLED_WRITE_S = 10.0
FLUSH_S = 1.0

OutT = TypeVar("OutT")
InT = TypeVar("InT")


class ByteStream(Protocol):
    """One end of a stream of whole messages."""

    async def read(self) -> bytes:
        """The next message.

        Raises:
            PdserveError: why there will be none.
        """

    async def write(self, data: bytes) -> None:
        """Returns when the transport has taken the message.

        Raises:
            WorkerLost: it will not.
        """

    async def finish(self) -> None:
        """Say that nothing more will be written and wait for the far end to agree."""


class StreamLink(Generic[OutT, InT]):
    """Starts its tasks at once; whoever makes one closes it."""

    def __init__(
        self,
        stream: ByteStream,
        encode: Callable[[OutT], bytes],
        decode: Callable[[bytes], InT],
        *,
        peer: str,
        stalled_write_s: float = STALLED_WRITE_S,
    ) -> None:
        self._stream = stream
        self._encode = encode
        self._decode = decode
        self._peer = peer
        self._stalled_write_s = stalled_write_s
        self._outbox: Mailbox[bytes] = Mailbox(BOX_MESSAGES)
        self._inbox: Mailbox[InT] = Mailbox(BOX_MESSAGES)
        self._flushed = asyncio.Event()  # nothing is unwritten, or nothing will be written
        self._flushed.set()
        self._closed = asyncio.Event()
        self._fault: ProtocolError | None = None
        self._reader = asyncio.create_task(self._read_all(), name=f"link-reader {peer}")
        self._writer = asyncio.create_task(self._write_all(), name=f"link-writer {peer}")

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
        """Queue a message; waits while the far end is BOX_MESSAGES behind.

        Raises:
            WorkerLost: the session is over.
        """
        data = self._encode(message)
        self._flushed.clear()
        try:
            await self._outbox.put(data)
        except PdserveError:
            self._flushed.set()
            raise

    async def flushed(self) -> None:
        """Until the stream has taken what was sent, or the link is over."""
        await self._flushed.wait()

    async def receive(self) -> InT:
        """The next message; one receiver at a time. May be cancelled without losing a message.

        Raises:
            WorkerLost: the session is over and every message that arrived has been received.
            ProtocolError: the far end sent something that is no message, or says that we did.
        """
        return await self._inbox.get()

    def lose(self, reason: str) -> None:
        """The stream is known to be dead."""
        self._end(WorkerLost(reason))

    async def close(self) -> None:
        """Send what was queued (within FLUSH_S), end the stream, leave no task. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._outbox.end(WorkerLost("session closed"))
        try:
            async with asyncio.timeout(FLUSH_S):
                await asyncio.wait({self._writer})
                await self._stream.finish()
        except (TimeoutError, WorkerLost):
            pass  # what the far end did not take in time is lost, as with a broken connection
        finally:
            self._inbox.end(WorkerLost("session closed"))
            tasks = (self._reader, self._writer)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, error: PdserveError) -> None:
        self._inbox.end(error)
        lost = error if isinstance(error, WorkerLost) else WorkerLost(f"session over: {error}")
        self._outbox.end(lost)
        self._flushed.set()

    async def _read_all(self) -> None:
        try:
            while True:
                data = await self._stream.read()
                await self._inbox.put(self._decoded(data))
        except PdserveError as error:
            self._end(error)

    def _decoded(self, data: bytes) -> InT:
        try:
            return self._decode(data)
        except ProtocolError as error:
            self._fault = error
            raise

    async def _write_all(self) -> None:
        try:
            while True:
                data = await self._outbox.get()
                async with asyncio.timeout(self._stalled_write_s):
                    await self._stream.write(data)
                if not self._outbox:
                    self._flushed.set()
        except TimeoutError:
            self._end(WorkerLost(f"{self._peer} took nothing for {self._stalled_write_s:g} s"))
        except PdserveError as error:
            self._end(error)
