"""Interference with a KV read: seeing, changing and breaking its messages on the way.

A ``Tap`` numbers the messages of all connections it wraps, both directions, from 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from kvtransfer.codec import decode, encode
from kvtransfer.messages import Frame, KvMessage
from kvtransfer.transports.base import Connection, Dialer, Handler
from pdserve.errors import FrameCorrupt, PeerUnreachable
from support.kv_pair import Carrier, KvPair
from support.whole_messages import WholeMessages

Action = Callable[[int, bytes], bytes | None]
"""(number, message) -> what goes on instead, or None to break the connection there."""


@dataclass
class Tap:
    action: Action = lambda number, data: data
    log: list[bytes] = field(default_factory=list)

    def names(self) -> list[str]:
        return [type(decode(data)).__name__ for data in self.log]

    def pass_on(self, data: bytes) -> bytes | None:
        self.log.append(data)
        return self.action(len(self.log) - 1, data)

    def wrap_dialer(self, carrier: Carrier) -> None:
        """For ``kv_pair(wrap=...)``: interfere at the reader's end."""
        carrier.dialer = _TappedDialer(carrier.dialer, self)

    def wrap_handler(self, handler: Handler) -> Handler:
        """For ``kv_pair(wrap_handler=...)``: interfere at the holder's end."""

        async def tapped(connection: Connection) -> None:
            await handler(_TappedConnection(connection, self))

        return tapped


class _TappedDialer:
    def __init__(self, dialer: Dialer, tap: Tap) -> None:
        self._dialer = dialer
        self._tap = tap

    async def dial(self, address: str) -> Connection:
        return _TappedConnection(await self._dialer.dial(address), self._tap)

    async def close(self) -> None:
        await self._dialer.close()


class _TappedConnection:
    lane = None

    def __init__(self, connection: Connection, tap: Tap) -> None:
        self._connection = WholeMessages(connection)
        self._tap = tap
        self.peer = connection.peer
        self.window = connection.window

    async def send(self, data: bytes) -> None:
        message = decode(data)
        payload_len = message.payload_len if isinstance(message, Frame) else 0
        await self._connection.send(await self._pass_on(data), payload_len)

    async def receive(self) -> bytes:
        return await self._pass_on(await self._connection.receive())

    async def close(self) -> None:
        await self._connection.close()

    async def _pass_on(self, data: bytes) -> bytes:
        changed = self._tap.pass_on(data)
        if changed is None:
            await self._connection.close()
            raise PeerUnreachable("broken by the test")
        return changed


def break_at(number: int) -> Action:
    return lambda current, data: None if current >= number else data


def flip(number: int, offset: int, mask: int) -> Action:
    """Change one byte of one message; offsets beyond its end wrap around."""

    def action(current: int, data: bytes) -> bytes:
        if current != number:
            return data
        changed = bytearray(data)
        changed[offset % len(changed)] ^= mask
        return bytes(changed)

    return action


async def expect_nothing_written(pair: KvPair) -> None:
    """A read whose first frame is harmed on its way leaves the reader's memory as it was."""
    before = bytes(pair.target.view(0))
    ticket = pair.ticket(4)
    pair.offer_computed(ticket)
    with pytest.raises(FrameCorrupt, match="checksum differs"):
        await pair.redeem(ticket)
    assert bytes(pair.target.view(0)) == before


class Talker:
    """One end of a connection in the hands of a test."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def say(self, message: KvMessage) -> None:
        lane = self.connection.lane
        if lane is not None and isinstance(message, Frame):
            await lane.send(encode(message, apart=True), message.pieces)
        else:
            await self.connection.send(encode(message))

    async def hear(self) -> KvMessage:
        return decode(await self.connection.receive())

    async def hear_end(self) -> None:
        """The stream must end here."""
        try:
            message = await self.hear()
        except PeerUnreachable:
            return
        raise AssertionError(f"{message} instead of the end")


class ScriptedHolder:
    """For ``kv_pair(wrap_handler=...)``: answers readers with a script instead of the exporter."""

    def __init__(self, script: Callable[[Talker], Awaitable[None]]) -> None:
        self._script = script
        self.done = asyncio.Event()

    def __call__(self, handler: Handler) -> Handler:
        async def scripted(connection: Connection) -> None:
            try:
                await self._script(Talker(connection))
            except PeerUnreachable:
                pass
            finally:
                self.done.set()
                await connection.close()

        return scripted
