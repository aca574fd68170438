"""Either end dies, or is cancelled, at every point of a read: nothing leaks, and the KV that a
holder still has can be read again."""

import asyncio
from dataclasses import replace

import pytest

from kvtransfer.config import TransferConfig
from kvtransfer.exporter import Export, ExportOutcome
from pdserve.errors import PeerUnreachable, StaleEpoch, TransferError
from support.kv_faults import Tap, break_at
from support.kv_pair import LAYOUT, KvPair, kv_pair, settle, until
from support.kv_transports import each_transport

BLOCK = LAYOUT.block_bytes
NUM_TOKENS = 14  # four blocks
CONFIG = TransferConfig(max_frame_bytes=BLOCK, credit_bytes=2 * BLOCK)
MESSAGES = [
    "Open", "Ready", "Accept", "Frame", "Credit", "Frame", "Credit", "Frame", "Credit", "Frame",
    "Commit", "Ack",
]  # fmt: skip
BEFORE_ACK = range(len(MESSAGES) - 1)
BEFORE_COMMIT = range(len(MESSAGES) - 2)


async def redeemed_again(pair: KvPair, export: Export) -> None:
    """Another reader with the next epoch gets what the first one lost."""
    later = replace(export.ticket, epoch=export.ticket.epoch + 1)
    assert export.rearm(later)
    pair.take(await pair.redeem(later), export)
    assert await export.outcome() is ExportOutcome.ACKED


async def test_the_messages_of_a_read_are_these() -> None:
    """The numbers below mean what they should."""
    tap = Tap()
    async with kv_pair(config=CONFIG, wrap=tap.wrap_dialer) as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)
        await export.outcome()
    assert tap.names() == MESSAGES


async def test_credit_is_given_back_when_half_of_it_is_used() -> None:
    tap = Tap()
    config = TransferConfig(max_frame_bytes=BLOCK, credit_bytes=4 * BLOCK)
    async with kv_pair(config=config, wrap=tap.wrap_dialer) as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)
        await export.outcome()
    assert [name for name in tap.names() if name in ("Frame", "Credit", "Commit")] == [
        "Frame", "Frame", "Credit", "Frame", "Frame", "Commit",
    ]  # fmt: skip


@each_transport()
@pytest.mark.parametrize("number", BEFORE_ACK)
async def test_the_reader_dies(transport: str, number: int) -> None:
    tap = Tap(break_at(number))
    async with kv_pair(transport, config=CONFIG, wrap=tap.wrap_dialer) as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        with pytest.raises(PeerUnreachable):
            await pair.redeem(ticket)
        await pair.exporter.idle()
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
        assert not export.has_ended
        assert export.is_held or number == 0
        tap.action = lambda current, data: data
        await redeemed_again(pair, export)


@each_transport()
@pytest.mark.parametrize("number", BEFORE_ACK)
async def test_the_holder_dies(transport: str, number: int) -> None:
    tap = Tap(break_at(number))
    async with kv_pair(transport, config=CONFIG, wrap_handler=tap.wrap_handler) as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        try:
            pair.take(await pair.redeem(ticket), export)
        except PeerUnreachable:
            pass
        else:  # at the holder's end the last credit may come after Commit
            assert "Commit" in tap.names()[:number]
        await pair.exporter.idle()
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
        assert not export.has_ended
        tap.action = lambda current, data: data
        await redeemed_again(pair, export)


@each_transport()
@pytest.mark.parametrize("end", ["reader", "holder"])
async def test_a_lost_ack_costs_only_the_holders_blocks(transport: str, end: str) -> None:
    tap = Tap(break_at(len(MESSAGES) - 1))
    wrap = {"wrap": tap.wrap_dialer} if end == "reader" else {"wrap_handler": tap.wrap_handler}
    async with kv_pair(transport, config=CONFIG, **wrap) as pair:  # type: ignore[arg-type]
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)
        await pair.exporter.idle()
        assert export.is_held


async def test_the_reader_is_cancelled_at_every_turn_of_the_loop() -> None:
    """In process a read takes the same turns each time, so each await gets its cancel."""
    num_turns = 0
    while await _cancelled_after(num_turns):
        num_turns += 1
    assert num_turns > len(MESSAGES)


async def _cancelled_after(num_turns: int) -> bool:
    """False if the read was over before."""
    async with kv_pair(config=CONFIG) as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        reading = pair.redeem(ticket)
        for _ in range(num_turns):
            await asyncio.sleep(0)
        if not reading.cancel():
            pair.take(reading.result(), export)
            return False
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
        await settle()
        assert pair.exporter.num_connections == 0
        await redeemed_again(pair, export)
        return True


@pytest.mark.parametrize("number", BEFORE_COMMIT)
async def test_the_reader_is_cancelled_at_every_message_over_grpc(number: int) -> None:
    readings: list[asyncio.Task[object]] = []

    def cancel(current: int, data: bytes) -> bytes:
        if current == number:
            readings[0].cancel()
        return data

    tap = Tap(cancel)
    async with kv_pair("grpc", config=CONFIG, wrap=tap.wrap_dialer) as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        readings.append(pair.redeem(ticket))
        with pytest.raises(asyncio.CancelledError):
            await readings[0]
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
        await until(lambda: export.num_reads == 1 or number == 0)
        await pair.exporter.idle()
        tap.action = lambda current, data: data
        await redeemed_again(pair, export)


@each_transport()
async def test_the_reader_is_cancelled_while_it_waits(transport: str) -> None:
    """For its ticket, for room, for frames, for its intake."""
    async with kv_pair(transport, config=CONFIG) as pair:
        pair.intake.set_unlimited(False)
        await pair.intake.take(2 << 30)
        room_asked = asyncio.Event()

        async def no_room(num_tokens: int) -> object:
            room_asked.set()
            return await asyncio.Event().wait()

        unknown = pair.redeem(pair.ticket(4))
        roomless = pair.redeem(held := pair.ticket(4), no_room)  # type: ignore[arg-type]
        frameless = pair.redeem(uncomputed := pair.ticket(4))
        unpaid = pair.redeem(ready := pair.ticket(4))
        pair.offer(held)
        opened = pair.offer(uncomputed)
        pair.offer_computed(ready)
        await room_asked.wait()
        await opened.wait_opened()
        await until(lambda: pair.intake.num_waiting == 1)
        for reading in (unknown, roomless, frameless, unpaid):
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
        assert pair.intake.num_waiting == 0
        await pair.exporter.idle()


@pytest.mark.parametrize("turns", range(40))
async def test_rearmed_at_every_turn_of_the_loop(turns: int) -> None:
    """The fenced reader gets all of it or StaleEpoch; the next one gets all of it."""
    async with kv_pair(config=CONFIG) as pair:
        ticket = pair.ticket(NUM_TOKENS)
        later = replace(ticket, epoch=2)
        export = pair.offer_computed(ticket)
        old = pair.redeem(ticket)
        for _ in range(turns):
            await asyncio.sleep(0)
        rearmed = export.rearm(later)
        try:
            pair.take(await old, export)
        except StaleEpoch:
            assert rearmed
        if rearmed:
            pair.take(await pair.redeem(later), export)
        assert await export.outcome() is ExportOutcome.ACKED


@pytest.mark.parametrize("turns", range(40))
async def test_closed_at_every_turn_of_the_loop(turns: int) -> None:
    """The holder's blocks are back at once, whatever its reader is doing."""
    async with kv_pair(config=CONFIG) as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        kept = [bytes(pair.source.view(block_id)) for block_id in export.lease.block_ids]
        reading = pair.redeem(ticket)
        for _ in range(turns):
            await asyncio.sleep(0)
        export.close("ticket_unknown", "cancelled")
        pair.release_holder()
        assert pair.holder_pool.num_free == pair.holder_pool.num_blocks
        for block_id in range(pair.source.num_blocks):
            pair.source.view(block_id)[:] = bytes(BLOCK)  # someone else's now
        try:
            imported = await reading
        except TransferError:
            return
        assert [bytes(pair.target.view(block)) for block in imported.lease.block_ids] == kept
        imported.lease.release()
