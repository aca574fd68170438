"""KV on a device at either end: copied through host memory, checked, and never left half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from engine.block_pool import BlockLease
from kvtransfer.config import TransferConfig
from kvtransfer.exporter import ExportOutcome
from pdserve.errors import (
    EngineFailure,
    FrameCorrupt,
    PeerUnreachable,
    TicketUnknown,
)
from support.kv_pair import FIRST, kv_pair, settle, until
from support.kv_script import BLOCK, frame, last_frame, sends
from support.kv_transports import each_transport

ENDS = [("holder",), ("reader",), ("holder", "reader")]


@each_transport()
@pytest.mark.parametrize("staged", ENDS, ids="+".join)
@pytest.mark.parametrize("num_tokens", [1, 4, 13, 48])
async def test_any_size_arrives_whole(
    transport: str, staged: Collection[str], num_tokens: int
) -> None:
    async with kv_pair(transport, staged=staged) as pair:
        ticket = pair.ticket(num_tokens)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)
        assert await export.outcome() is ExportOutcome.ACKED


async def test_frames_flow_while_the_prompt_is_computed() -> None:
    async with kv_pair(staged=("holder", "reader")) as pair:
        ticket = pair.ticket(22)
        export = pair.offer(ticket)
        reading = pair.redeem(ticket)
        assert await export.wait_opened()
        export.advance(9)
        await until(lambda: export.bytes_sent == 2 * BLOCK)
        await until(lambda: pair.copiers["reader"].num_writes == 1)
        export.advance(22)
        export.commit(FIRST)
        pair.take(await reading, export)


@pytest.mark.parametrize("read_back", [True, False])
async def test_read_back_is_an_option(read_back: bool) -> None:
    config = TransferConfig(max_frame_bytes=BLOCK, read_back=read_back)
    async with kv_pair(staged=("reader",), config=config) as pair:
        ticket = pair.ticket(12)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)
        copier = pair.copiers["reader"]
        assert (copier.num_writes, copier.num_reads) == (3, 3 * read_back)


async def test_a_byte_changed_on_its_way_into_the_device_is_found() -> None:
    async with kv_pair(staged=("reader",)) as pair:
        pair.copiers["reader"].damaged = True
        ticket = pair.ticket(12)
        pair.offer_computed(ticket)
        with pytest.raises(FrameCorrupt, match="frame 0: checksum of what was read back from cuda"):
            await pair.redeem(ticket)
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks


async def test_a_damaged_frame_is_not_written_to_the_device() -> None:
    read = sends(frame, lambda ticket: last_frame(ticket, xxh3=1))
    async with kv_pair(wrap_handler=read.holder, staged=("reader",)) as pair:
        with pytest.raises(FrameCorrupt, match="frame 1: checksum differs"):
            await read.redeem(pair)
        assert pair.copiers["reader"].num_writes == 1
        await read.holder.done.wait()


@pytest.mark.parametrize("way", ["write", "read back"])
async def test_a_cancel_during_a_copy_keeps_the_blocks_until_it_ends(way: str) -> None:
    async with kv_pair(staged=("reader",)) as pair:
        copier, pool = pair.copiers["reader"], pair.reader_pool
        ticket = pair.ticket(12)
        pair.offer_computed(ticket)
        gate = copier.write_gate if way == "write" else copier.read_gate
        gate.clear()
        reading = pair.redeem(ticket)
        await until(lambda: copier.num_running == 1 and copier.num_reads == (way != "write"))
        reading.cancel()
        await settle()
        assert not reading.done()
        assert pool.num_free == pool.num_blocks - 3
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert pool.num_free == pool.num_blocks


async def test_blocks_released_by_another_stay_until_the_copy_into_them_ends() -> None:
    async with kv_pair(staged=("reader",)) as pair:
        copier, pool = pair.copiers["reader"], pair.reader_pool
        lease = pool.lease(3)
        assert lease is not None

        async def make_room(num_tokens: int) -> BlockLease:
            return lease

        ticket = pair.ticket(12)
        pair.offer_computed(ticket)
        copier.write_gate.clear()
        reading = pair.redeem(ticket, make_room)
        await until(lambda: copier.num_running == 1)
        lease.release()
        reading.cancel()
        await settle()
        assert pool.num_free == pool.num_blocks - 3
        copier.write_gate.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert pool.num_free == pool.num_blocks


async def test_the_tickets_time_may_end_during_a_copy() -> None:
    """All of it had come by then."""
    async with kv_pair(staged=("reader",)) as pair:
        copier = pair.copiers["reader"]
        ticket = pair.ticket(12, expires_in_s=0.03)
        export = pair.offer_computed(ticket)
        copier.write_gate.clear()
        reading = pair.redeem(ticket)
        assert await export.outcome() is ExportOutcome.EXPIRED
        copier.write_gate.set()
        pair.take(await reading, export)


async def test_an_export_closed_during_a_copy_gives_its_blocks_back_when_it_ends() -> None:
    async with kv_pair(staged=("holder",)) as pair:
        copier, pool = pair.copiers["holder"], pair.holder_pool
        ticket = pair.ticket(12)
        copier.read_gate.clear()
        export = pair.offer_computed(ticket)
        reading = pair.redeem(ticket)
        await until(lambda: copier.num_running == 1)
        export.close("ticket_unknown", "cancelled")
        pair.release_holder()
        await settle()
        assert pool.num_free == pool.num_blocks - 3
        copier.read_gate.set()
        with pytest.raises(TicketUnknown, match="cancelled"):
            await reading
        assert pool.num_free == pool.num_blocks
        assert export.bytes_sent == 0


async def test_a_device_that_fails_at_the_holder_ends_the_read_and_keeps_the_ticket() -> None:
    async with kv_pair(staged=("holder",)) as pair:
        copier = pair.copiers["holder"]
        ticket = pair.ticket(12)
        export = pair.offer_computed(ticket)
        copier.fail_with = EngineFailure("copy of 3 blocks from cuda:7: broken")
        with pytest.raises(PeerUnreachable):
            await pair.redeem(ticket)
        await until(lambda: export.is_held)
        assert isinstance(export.last_failure, EngineFailure)
        copier.fail_with = None
        pair.take(await pair.redeem(ticket), export)


async def test_a_device_that_fails_at_the_reader_is_the_readers_failure() -> None:
    async with kv_pair(staged=("reader",)) as pair:
        ticket = pair.ticket(12)
        pair.offer_computed(ticket)
        pair.copiers["reader"].fail_with = EngineFailure("copy of 3 blocks to cuda:7: broken")
        with pytest.raises(EngineFailure, match="broken"):
            await pair.redeem(ticket)
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
