"""A connection without a lane made of one with: payloads are joined to their messages and parted.

For tests that see or change the bytes on the way, whatever the transport.
"""

from __future__ import annotations

from kvtransfer.codec import decode
from kvtransfer.messages import Frame
from kvtransfer.transports.base import Connection


class WholeMessages:
    lane = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.peer = connection.peer
        self.window = connection.window

    async def send(self, data: bytes, payload_len: int = 0) -> None:
        """``payload_len``: bytes at the end that are a frame's payload."""
        lane = self._connection.lane
        if lane is None or not payload_len:
            await self._connection.send(data)
        else:
            await lane.send(data[:-payload_len], [memoryview(data)[-payload_len:]])

    async def receive(self) -> bytes:
        data, lane = await self._connection.receive(), self._connection.lane
        if lane is None:
            return data
        message = decode(data, apart=True)
        payload = bytearray(message.payload_len if isinstance(message, Frame) else 0)
        await lane.receive_into([memoryview(payload)])
        return data + payload

    async def close(self) -> None:
        await self._connection.close()
