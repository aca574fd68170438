"""Reads in which the test plays one side: a scripted holder, or a raw reader of a real holder.

The scripted holder has ``NUM_TOKENS`` tokens in two frames, made by ``frame``, ``last_frame`` and
``commit``; each takes changes, to be wrong in one field.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import xxhash

from engine.block_pool import BlockLease
from kvtransfer.config import TransferConfig
from kvtransfer.digest import ReadDigest
from kvtransfer.messages import (
    Accept,
    Ack,
    Commit,
    Credit,
    Frame,
    KvMessage,
    Nack,
    Open,
    Ready,
    Refused,
)
from kvtransfer.transports.base import Dialer
from pdserve.errors import TransferError
from pdserve.types import TransferTicket, WorkerId
from support.kv_faults import ScriptedHolder, Talker
from support.kv_pair import FIRST, LAYOUT, Carrier, KvPair, kv_pair

BLOCK = LAYOUT.block_bytes
NUM_TOKENS = 10  # three blocks
PAYLOAD = bytes(range(256)) * (2 * BLOCK // 256)


def frame(ticket: TransferTicket, **changes: Any) -> Frame:
    """The first of two frames: two blocks."""
    right = Frame(
        ticket_id=ticket.ticket_id,
        epoch=ticket.epoch,
        seq=0,
        first_token=0,
        num_tokens=8,
        first_layer=0,
        num_layers=LAYOUT.num_layers,
        first_head=0,
        num_heads=LAYOUT.num_kv_heads,
        dtype=LAYOUT.dtype,
        xxh3=xxhash.xxh3_64_intdigest(PAYLOAD),
        pieces=(memoryview(PAYLOAD),),
    )
    return replace(right, **changes)


def last_frame(ticket: TransferTicket, **changes: Any) -> Frame:
    payload = PAYLOAD[:BLOCK]
    right = frame(
        ticket, seq=1, first_token=8, num_tokens=2, pieces=(memoryview(payload),),
        xxh3=xxhash.xxh3_64_intdigest(payload),
    )  # fmt: skip
    return replace(right, **changes)


def commit(ticket: TransferTicket, **changes: Any) -> Commit:
    digest = ReadDigest()
    for each in (frame(ticket), last_frame(ticket)):
        digest.add(each.xxh3)
    right = Commit(ticket.ticket_id, ticket.epoch, 2, NUM_TOKENS, digest.value(NUM_TOKENS), FIRST)
    return replace(right, **changes)


async def begin(reader: Talker) -> None:
    assert isinstance(await reader.hear(), Open)
    await reader.say(Ready(NUM_TOKENS))
    assert isinstance(await reader.hear(), Accept)


class Read:
    """One redemption against a script; ``last_word`` is what the reader said at the end."""

    def __init__(self, script: Callable[[Talker, TransferTicket], Awaitable[None]]) -> None:
        self._script = script
        self.ticket: TransferTicket
        self.last_word: KvMessage | None = None
        self.holder = ScriptedHolder(self._run)

    async def _run(self, reader: Talker) -> None:
        await self._script(reader, self.ticket)
        while not isinstance(message := await reader.hear(), (Ack, Nack)):
            assert isinstance(message, Credit)
        self.last_word = message

    async def redeem(self, pair: KvPair, **changes: Any) -> None:
        self.ticket = pair.ticket(NUM_TOKENS, **changes)
        imported = await pair.redeem(self.ticket)
        assert isinstance(imported.lease, BlockLease)
        assert pair.target.contents(imported.lease) == [
            PAYLOAD[:BLOCK], PAYLOAD[BLOCK:], PAYLOAD[:BLOCK],
        ]  # fmt: skip
        assert imported.first_token == FIRST
        assert imported.timing.num_bytes == 3 * BLOCK
        imported.lease.release()


def sends(*make: Callable[[TransferTicket], KvMessage]) -> Read:
    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await begin(reader)
        for each in make:
            await reader.say(each(ticket))

    return Read(script)


async def expect(
    read: Read,
    error: type[TransferError],
    match: str,
    config: TransferConfig | None = None,
    **changes: Any,
) -> None:
    """The redemption fails so, and the holder is told where it can hear it."""
    config = config or TransferConfig(max_frame_bytes=3 * BLOCK)
    async with kv_pair(config=config, wrap_handler=read.holder) as pair:
        with pytest.raises(error, match=match) as caught:
            await read.redeem(pair, **changes)
        assert type(caught.value) is error
        await read.holder.done.wait()
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks


class RawReaderPair:
    """A holder and raw connections to it."""

    def __init__(self, **config: float) -> None:
        self.dialer: Dialer
        values = {"max_frame_bytes": 2 * BLOCK, **config}
        self.context = kv_pair(config=TransferConfig(**values), wrap=self._wrap)  # type: ignore[arg-type]
        self.ends: KvPair

    def _wrap(self, carrier: Carrier) -> None:
        self.dialer = carrier.dialer

    async def __aenter__(self) -> RawReaderPair:
        self.ends = await self.context.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.context.__aexit__(*error)  # type: ignore[arg-type]

    async def connect(self) -> Talker:
        return Talker(await self.dialer.dial(self.ends.endpoint.address))

    async def open(self, ticket: TransferTicket) -> Talker:
        reader = await self.connect()
        await reader.say(opening(ticket))
        return reader

    async def open_ready(self, ticket: TransferTicket) -> Talker:
        reader = await self.open(ticket)
        assert await reader.hear() == Ready(ticket.num_tokens)
        return reader


def opening(ticket: TransferTicket) -> Open:
    return Open(ticket.ticket_id, ticket.epoch, WorkerId("d"), "b", LAYOUT)


async def hear_all_frames(reader: Talker) -> tuple[list[Frame], Commit]:
    frames: list[Frame] = []
    while isinstance(message := await reader.hear(), Frame):
        frames.append(message)
    assert isinstance(message, Commit)
    return frames, message


async def hear_refusal(reader: Talker) -> str:
    message = await reader.hear()
    assert isinstance(message, Refused), message
    await reader.hear_end()
    return message.code
