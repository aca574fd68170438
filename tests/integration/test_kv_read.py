"""A KV read over every transport: one suite, once a transport (messages: test_kv_transports.py)."""

import asyncio
from dataclasses import replace

import pytest

from engine.block_pool import BlockLease
from kvtransfer.config import TransferConfig
from kvtransfer.exporter import ExportOutcome
from kvtransfer.messages import FinishedAtPrefill, FirstTokenInfo
from pdserve.errors import (
    LayoutMismatch,
    PeerSilent,
    PeerUnreachable,
    StaleEpoch,
    TicketExpired,
    TicketUnknown,
)
from pdserve.types import Endpoint
from support.kv_faults import ScriptedHolder, Talker, Tap
from support.kv_pair import FIRST, LAYOUT, kv_pair, until
from support.kv_transports import each_transport

BLOCK = LAYOUT.block_bytes
SIZE = LAYOUT.block_size

pytestmark = each_transport()


@pytest.mark.parametrize("num_tokens", [1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE, 47 * SIZE + 2])
@pytest.mark.parametrize("frame_blocks", [1, 3, 1000])
async def test_any_size_arrives_whole(transport: str, num_tokens: int, frame_blocks: int) -> None:
    config = TransferConfig(max_frame_bytes=frame_blocks * BLOCK)
    async with kv_pair(transport, config=config) as pair:
        ticket = pair.ticket(num_tokens)
        export = pair.offer_computed(ticket)
        imported = await pair.redeem(ticket)
        assert imported.timing.transport == transport
        assert imported.timing.passed_over == ""
        assert imported.timing.num_tokens == num_tokens
        assert imported.timing.num_bytes == LAYOUT.num_blocks(num_tokens) * BLOCK
        assert imported.timing.transfer_s >= 0
        assert await export.outcome() is ExportOutcome.ACKED
        pair.take(imported, export)


async def test_real_sized_blocks_in_full_frames(transport: str) -> None:
    layout = replace(LAYOUT, num_layers=30, num_kv_heads=3, head_dim=64, block_size=16)
    async with kv_pair(transport, config=TransferConfig(), layout=layout, num_blocks=12) as pair:
        ticket = pair.ticket(12 * 16 - 5)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)


@pytest.mark.parametrize("credit_bytes", [1, BLOCK, 2 * BLOCK + 1])
async def test_small_credit_is_enough(transport: str, credit_bytes: int) -> None:
    config = TransferConfig(max_frame_bytes=4 * BLOCK, credit_bytes=credit_bytes)
    async with kv_pair(transport, config=config) as pair:
        ticket = pair.ticket(30)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)


async def test_frames_flow_while_the_prompt_is_computed(transport: str) -> None:
    tap = Tap()
    async with kv_pair(transport, wrap_handler=tap.wrap_handler) as pair:
        ticket = pair.ticket(22)
        export = pair.offer(ticket)
        reading = pair.redeem(ticket)
        assert await export.wait_opened()
        for num_computed in (3, 8, 9, 20, 22):
            export.advance(num_computed)
            whole = 22 if num_computed == 22 else num_computed // SIZE * SIZE
            sent = LAYOUT.num_blocks(whole) * BLOCK
            await until(lambda sent=sent: export.bytes_sent >= sent)  # type: ignore[misc]
        assert not reading.done()
        export.commit(FIRST)
        pair.take(await reading, export)
        assert tap.names().count("Frame") == 3


async def test_the_reader_may_come_before_the_offer(transport: str) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(9)
        reading = pair.redeem(ticket)
        await until(lambda: pair.exporter.num_connections == 1)
        export = pair.offer_computed(ticket)
        pair.take(await reading, export)


async def test_many_reads_at_once(transport: str) -> None:
    async with kv_pair(transport) as pair:
        tickets = [pair.ticket(1 + number) for number in range(10)]
        exports = [pair.offer_computed(ticket) for ticket in tickets]
        readings = [pair.redeem(ticket) for ticket in tickets]
        for reading, export in zip(readings, exports, strict=True):
            pair.take(await reading, export)


async def test_logprobs_may_be_absent(transport: str) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(4)
        export = pair.offer(ticket)
        export.advance(4)
        export.commit(FirstTokenInfo(0, 1))
        imported = await pair.redeem(ticket)
        assert imported.first_token == FirstTokenInfo(0, 1, None)
        imported.lease.release()


@pytest.mark.parametrize("computed", [0, 5])
async def test_finished_early(transport: str, computed: int) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(9)
        export = pair.offer(ticket)
        reading = pair.redeem(ticket)
        await export.wait_opened()
        export.advance(computed)
        export.finish_early()
        with pytest.raises(FinishedAtPrefill):
            await reading
        assert await export.outcome() is ExportOutcome.CLOSED


async def test_unknown_ticket(transport: str) -> None:
    async with kv_pair(transport, config=TransferConfig(open_timeout_s=0.05)) as pair:
        dialer = pair.importer.dialers[pair.endpoint.transport]
        await (await dialer.dial(pair.endpoint.address)).close()  # a first one may take longer
        with pytest.raises(TicketUnknown, match="ticket-1"):
            await pair.redeem(pair.ticket(4))


async def never(num_tokens: int) -> BlockLease:
    await asyncio.Event().wait()
    raise AssertionError


async def test_expiry_reaches_the_reader_and_later_ones(transport: str) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(4)
        export = pair.offer_computed(replace(ticket, expires_in_s=0.2))
        with pytest.raises(TicketExpired):
            await pair.redeem(ticket, never)
        assert await export.outcome() is ExportOutcome.EXPIRED
        with pytest.raises(TicketExpired):
            await pair.redeem(ticket)


async def test_closed_by_the_worker(transport: str) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(4)
        export = pair.offer(ticket)
        reading = pair.redeem(ticket)
        await export.wait_opened()
        export.close("ticket_unknown", "cancelled: client left")
        pair.release_holder()
        with pytest.raises(TicketUnknown, match="client left"):
            await reading


async def test_rearmed_for_another_reader(transport: str) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(9)
        later = replace(ticket, epoch=2)
        export = pair.offer(ticket)
        old = pair.redeem(ticket)
        await export.wait_opened()
        export.advance(5)
        assert export.rearm(later)
        new = pair.redeem(later)
        with pytest.raises(StaleEpoch):
            await old
        assert await export.wait_opened()
        export.advance(9)
        export.commit(FIRST)
        pair.take(await new, export)
        assert await export.outcome() is ExportOutcome.ACKED


async def test_a_second_reader_of_the_epoch_replaces_the_first(transport: str) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(9)
        export = pair.offer(ticket)
        first = pair.redeem(ticket)
        await export.wait_opened()
        second = pair.redeem(ticket)
        with pytest.raises(StaleEpoch):
            await first
        export.advance(9)
        export.commit(FIRST)
        pair.take(await second, export)


async def test_another_layout_is_refused_by_name(transport: str) -> None:
    async with kv_pair(transport, reader_layout=replace(LAYOUT, head_dim=8)) as pair:
        ticket = pair.ticket(9)
        export = pair.offer_computed(ticket)
        with pytest.raises(LayoutMismatch, match="head_dim: holder 4, reader 8"):
            await pair.redeem(ticket)
        assert not export.has_ended


async def test_a_peer_that_says_nothing(transport: str) -> None:
    async def script(reader: Talker) -> None:
        await reader.hear()
        await reader.hear()

    config = TransferConfig(ready_timeout_s=0.05)
    async with kv_pair(transport, config=config, wrap_handler=ScriptedHolder(script)) as pair:
        with pytest.raises(PeerSilent):
            await pair.redeem(pair.ticket(4))


async def test_a_holder_that_stops_tells_its_readers(transport: str) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(4)
        export = pair.offer(ticket)
        reading = pair.redeem(ticket)
        await export.wait_opened()
        await pair.exporter.close()
        with pytest.raises(TicketUnknown, match="stops"):
            await reading


async def test_arrivals_are_paced_by_the_steps(transport: str) -> None:
    async with kv_pair(transport, config=TransferConfig(max_frame_bytes=BLOCK)) as pair:
        ticket = pair.ticket(6 * SIZE)
        export = pair.offer_computed(ticket)
        pair.intake.bytes_per_step = 2 * BLOCK
        pair.intake.set_unlimited(True)
        pair.intake.set_unlimited(False)
        pair.intake.refill()
        taken_before = pair.intake.bytes_taken
        reading = pair.redeem(ticket)
        for num_steps in (1, 2, 3):
            await until(lambda: pair.intake.num_waiting > 0 or reading.done())
            assert pair.intake.bytes_taken - taken_before == min(6, 2 * num_steps) * BLOCK
            pair.intake.refill()
        pair.take(await reading, export)


async def test_a_holder_can_be_tried_without_a_read(transport: str) -> None:
    async with kv_pair(transport) as pair:
        assert await pair.importer.reach((pair.endpoint,)) == pair.endpoint.transport
        ticket = pair.ticket(8)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)
        with pytest.raises(PeerUnreachable, match="no common transport"):
            await pair.importer.reach((Endpoint("pigeon", "loft"),))
