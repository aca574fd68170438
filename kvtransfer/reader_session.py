"""One redemption as the reader sees it (docs/protocol.md section 5).

    Open -> Ready -> room for all blocks -> Accept -> Frame ... -> Commit -> verified

What the reader's first blocks hold already (``Lease.num_cached``) is not sent.

Every frame is copied into the reader's own blocks and checked on that copy, so what was verified
is what will be used (block_bytes.py says what that means on a device). Where the holder's layout
differs the copy is checked before it is converted into the blocks (converted_blocks.py). Ends in
``ImportedKv`` or an error; the Ack or Nack is the importer's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from kvtransfer.block_bytes import (
    Fill,
    Put,
    bounded,
    carried,
    following,
    lying_there,
    paced,
    place_frame,
)
from kvtransfer.codec import decode, encode
from kvtransfer.coding import EXACT, coded_block_bytes
from kvtransfer.config import TransferConfig
from kvtransfer.converted_blocks import Arriving, place_converted
from kvtransfer.digest import ReadDigest
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import (
    Accept,
    Alive,
    Commit,
    Credit,
    Finished,
    FinishedAtPrefill,
    FirstTokenInfo,
    Frame,
    KvMessage,
    Open,
    Probe,
    Ready,
    Refused,
    transfer_error,
)
from kvtransfer.store import BlockBuffers, Lease
from kvtransfer.transports.base import Connection
from pdserve.clock import Clock
from pdserve.errors import (
    FrameCorrupt,
    PeerSilent,
    PeerUnreachable,
    TransferError,
    UnknownMessage,
)
from pdserve.types import KvTiming, TransferTicket

MakeRoom = Callable[[int], Awaitable[Lease]]


@dataclass(frozen=True, slots=True)
class ImportedKv:
    """Verified KV in the reader's own blocks. The lease is the caller's from here on."""

    lease: Lease
    num_tokens: int
    first_token: FirstTokenInfo
    timing: KvTiming


class ReaderSession:
    """Reads the KV of one ticket over one connection: ``run`` once, ``abandon`` if it raised."""

    def __init__(
        self,
        connection: Connection,
        ticket: TransferTicket,
        buffers: BlockBuffers,
        config: TransferConfig,
        clock: Clock,
    ) -> None:
        self._connection = connection
        self._ticket = ticket
        self._buffers = buffers
        self._config = config
        self._clock = clock
        self._lease: Lease | None = None
        self._receiving: asyncio.Task[bytes | memoryview] | None = None
        self._num_cached = 0  # tokens that were here before the read
        self._position = 0  # tokens that are here, from the start
        self._coding = EXACT if connection.window is not None else config.kv_in_flight
        self._block_bytes = coded_block_bytes(ticket.layout, self._coding)  # as they come
        self._full_credit_bytes = max(config.credit_bytes, self._block_bytes)
        self._credit_bytes = self._full_credit_bytes  # what the holder may still send
        self._placed_bytes = 0  # of what came, not credited yet
        self._num_bytes = 0
        self._digest = ReadDigest()
        self._first_frame_s: float | None = None

    async def run(
        self, opening: Open | Probe, make_room: MakeRoom, intake: IntakeBudget, transport: str
    ) -> ImportedKv:
        """Raises a TransferError, FinishedAtPrefill, or whatever ``make_room`` raises."""
        try:
            await self._open(opening)
            lease = await self._take_room(make_room)
            await self._accept()
            commit = await self._receive_frames(lease, intake)
        finally:
            if self._receiving is not None:
                self._receiving.cancel()
                await asyncio.gather(self._receiving, return_exceptions=True)
        return ImportedKv(
            lease, self._ticket.num_tokens, commit.first_token, self._timing(transport)
        )

    def abandon(self) -> None:
        """Give back the blocks after a failure."""
        if self._lease is not None:
            self._lease.release()

    async def _open(self, opening: Open | Probe) -> None:
        timeout_s = self._config.ready_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(opening)
                message = await self._receive()
        except TimeoutError:
            raise PeerSilent(f"no answer to Open within {timeout_s:g} s") from None
        if not isinstance(message, Ready):
            raise _unexpected(message, "Ready")
        if isinstance(opening, Probe) and 0 < message.num_tokens < opening.num_tokens:
            # What a small pool has; for a request's ticket it would be the wrong KV.
            self._ticket = replace(self._ticket, num_tokens=message.num_tokens)
        if message.num_tokens != self._ticket.num_tokens:
            raise FrameCorrupt(
                f"holder has {message.num_tokens} tokens, the ticket {self._ticket.num_tokens}"
            )

    async def _take_room(self, make_room: MakeRoom) -> Lease:
        """Wait for blocks, listening to the holder meanwhile: it may refuse or finish."""
        self._receiving = asyncio.create_task(self._connection.receive())
        room = asyncio.ensure_future(make_room(self._ticket.num_tokens))
        try:
            await asyncio.wait({room, self._receiving}, return_when=asyncio.FIRST_COMPLETED)
            if not room.done():
                raise _unexpected(await self._receive(), "nothing before Accept")
            self._lease = room.result()
        finally:
            if self._lease is None:
                room.add_done_callback(_give_back)
                room.cancel()
                await asyncio.wait({room})
        wanted = self._buffers.layout.num_blocks(self._ticket.num_tokens)
        assert self._lease.num_blocks >= wanted, "make_room gave too few blocks"
        cached = self._lease.num_cached * self._buffers.layout.block_size
        assert cached <= self._ticket.num_tokens, "make_room gave more than there is"
        self._num_cached = cached
        self._position = self._from_token(cached)
        return self._lease

    def _from_token(self, cached: int) -> int:
        """Where the read starts: at a boundary of the holder's blocks, which may be larger."""
        if cached == self._ticket.num_tokens:
            return cached
        return cached - cached % self._ticket.layout.block_size

    async def _accept(self) -> None:
        in_place = self._connection.window is not None
        await self._send(Accept(self._position, self._credit_bytes, in_place, self._coding))

    async def _receive_frames(self, lease: Lease, intake: IntakeBudget) -> Commit:
        while True:
            message = await self._next_word()
            match message:
                case Frame():
                    await self._take_frame(message, lease, intake)
                case Alive():
                    pass
                case Commit():
                    self._verify(message)
                    return message
                case _:
                    raise _unexpected(message, "Frame or Commit")

    async def _next_word(self) -> KvMessage:
        """A holder that computes says Alive meanwhile: silence is not a long prompt."""
        timeout_s = self._config.silence_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._receive()
        except TimeoutError:
            have = f"{self._position} of {self._ticket.num_tokens} tokens"
            raise PeerSilent(f"{have}, then nothing for {timeout_s:g} s") from None

    async def _take_frame(self, frame: Frame, lease: Lease, intake: IntakeBudget) -> None:
        if self._first_frame_s is None:
            self._first_frame_s = self._clock.now()
        self._check(frame)
        num_bytes = self._ticket.layout.num_blocks(frame.num_tokens) * self._block_bytes
        await self._place(frame, lease, paced(self._fill(frame), intake))
        self._digest.add(frame.xxh3)
        self._position += frame.num_tokens
        self._num_bytes += num_bytes
        self._placed_bytes += num_bytes
        if self._position < self._ticket.num_tokens:
            await self._give_credit()

    async def _give_credit(self) -> None:
        """Once half of all credit is used: each message wakes the holder, often on this core."""
        if 2 * self._placed_bytes >= self._full_credit_bytes:
            num_bytes, self._placed_bytes = self._placed_bytes, 0
            await self._send(Credit(num_bytes))
            self._credit_bytes += num_bytes

    async def _place(self, frame: Frame, lease: Lease, put: Put) -> None:
        buffers, source, read_back = self._buffers, self._ticket.layout, self._config.read_back
        if self._coding != EXACT or source.first_difference(buffers.layout) is not None:
            await place_converted(
                buffers, lease, Arriving(source, self._coding), frame, self._num_cached, put,
                read_back=read_back,
            )  # fmt: skip
            return
        first_block = self._position // source.block_size
        blocks = range(first_block, first_block + source.num_blocks(frame.num_tokens))
        await place_frame(buffers, lease, blocks, frame, put, read_back=read_back)

    def _fill(self, frame: Frame) -> Fill:
        window, lane = self._connection.window, self._connection.lane
        timeout_s = self._config.silence_timeout_s
        if window is not None:
            return bounded(lying_there(frame, window), timeout_s)
        return carried(frame) if lane is None else bounded(following(lane), timeout_s)

    def _check(self, frame: Frame) -> None:
        """Everything but the checksum. Raises FrameCorrupt naming the field."""
        layout, ticket = self._ticket.layout, self._ticket
        expected = {
            "ticket_id": ticket.ticket_id,
            "epoch": ticket.epoch,
            "seq": self._digest.num_frames,
            "first_token": self._position,
            "first_layer": 0,
            "num_layers": layout.num_layers,
            "first_head": layout.first_kv_head,
            "num_heads": layout.num_kv_heads,
            "dtype": layout.dtype if self._coding == EXACT else self._coding,
        }
        for name, value in expected.items():
            if getattr(frame, name) != value:
                raise FrameCorrupt(f"frame {name} is {getattr(frame, name)!r}, not {value!r}")
        end = self._position + frame.num_tokens
        inside = self._position < end <= ticket.num_tokens
        if not inside or (end % layout.block_size and end != ticket.num_tokens):
            raise FrameCorrupt(f"frame num_tokens {frame.num_tokens} at {self._position}")
        num_blocks = layout.num_blocks(frame.num_tokens)
        in_place = self._connection.window is not None
        if len(frame.block_ids) != num_blocks * in_place:
            raise FrameCorrupt(f"frame block_ids are {len(frame.block_ids)} of {num_blocks}")
        payload_len = num_blocks * self._block_bytes
        if frame.payload_len != payload_len * (not in_place):
            raise FrameCorrupt(f"frame payload is {frame.payload_len} bytes, not {payload_len}")
        limit = min(max(self._config.max_frame_bytes, self._block_bytes), self._credit_bytes)
        if payload_len > limit:
            raise FrameCorrupt(f"frame payload is {payload_len} bytes, limit or credit is {limit}")
        self._credit_bytes -= payload_len

    def _verify(self, commit: Commit) -> None:
        ticket = self._ticket
        expected = {
            "ticket_id": ticket.ticket_id,
            "epoch": ticket.epoch,
            "num_frames": self._digest.num_frames,
            "num_tokens": ticket.num_tokens,
            "digest": self._digest.value(ticket.num_tokens),
        }
        for name, value in expected.items():
            if getattr(commit, name) != value:
                raise FrameCorrupt(f"commit {name} is {getattr(commit, name)!r}, not {value!r}")
        if self._position != ticket.num_tokens:
            raise FrameCorrupt(f"commit after {self._position} of {ticket.num_tokens} tokens")

    def _timing(self, transport: str) -> KvTiming:
        now = self._clock.now()
        started_s = now if self._first_frame_s is None else self._first_frame_s
        return KvTiming(
            transport,
            self._position - self._num_cached,
            self._num_bytes,
            now - started_s,
            self._num_cached,
            "" if self._coding == EXACT else self._coding,
        )

    async def _send(self, message: KvMessage) -> None:
        try:
            await self._connection.send(encode(message))
        except PeerUnreachable:
            # The holder may have said why before it ended the stream: let the next receive tell.
            if isinstance(message, Open | Probe):
                raise

    async def _receive(self) -> KvMessage:
        receiving, self._receiving = self._receiving, None
        data = await (receiving if receiving is not None else self._connection.receive())
        try:
            return decode(data, apart=self._connection.lane is not None)
        except UnknownMessage as error:
            raise FrameCorrupt(str(error)) from error


def _unexpected(message: KvMessage, wanted: str) -> TransferError | FinishedAtPrefill:
    """The end the holder put to the read, or its mistake."""
    match message:
        case Refused():
            return transfer_error(message.code, message.detail)
        case Finished():
            return FinishedAtPrefill()
        case _:
            return FrameCorrupt(f"{type(message).__name__} came, {wanted} expected")


def _give_back(room: asyncio.Future[Lease]) -> None:
    if not room.cancelled() and room.exception() is None:
        room.result().release()
