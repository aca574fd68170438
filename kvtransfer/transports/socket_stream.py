"""Whole messages over a stream socket: each one with its length (4 bytes, little-endian) before it.

What the transports that bring their own sockets have in common. Nothing is buffered on the sending
side: ``send`` returns when the system has taken the message. Does not know addresses.
"""

from __future__ import annotations

import asyncio
import struct

from kvtransfer.transports.base import Window
from pdserve.errors import PeerUnreachable

_LENGTH = struct.Struct("<I")


class SocketConnection:
    """One end. ``max_message_bytes``: a longer one from the far end breaks the connection."""

    lane = None

    def __init__(
        self,
        peer: str,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        max_message_bytes: int,
        window: Window | None = None,
    ) -> None:
        self._peer = peer
        self._reader, self._writer = streams
        self._writer.transport.set_write_buffer_limits(high=0)
        self._max_message_bytes = max_message_bytes
        self._window = window
        self._closed = False

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def window(self) -> Window | None:
        return self._window

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def send(self, data: bytes) -> None:
        self._refuse_if_closed()
        try:
            self._writer.writelines((_LENGTH.pack(len(data)), data))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:  # RuntimeError: uvloop, of a closed transport
            raise PeerUnreachable(f"{self._peer}: {error}") from error

    async def receive(self) -> bytes:
        self._refuse_if_closed()
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > self._max_message_bytes:
                await self.close()
                raise PeerUnreachable(
                    f"{self._peer}: message of {length} bytes, limit {self._max_message_bytes}"
                )
            return await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise PeerUnreachable(f"{self._peer}: stream ended") from error

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._writer.transport.abort()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise PeerUnreachable(f"{self._peer}: closed")
