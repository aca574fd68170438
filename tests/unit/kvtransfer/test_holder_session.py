"""The holder's table of docs/protocol.md section 5, against a reader played by the test."""

import asyncio
from dataclasses import replace

import pytest

from kvtransfer.codec import encode
from kvtransfer.config import MIB, TransferConfig
from kvtransfer.envelope import seal
from kvtransfer.exporter import ExportOutcome
from kvtransfer.messages import (
    Accept,
    Ack,
    Commit,
    Credit,
    Finished,
    Frame,
    KvMessage,
    Nack,
    Open,
    Ready,
    Refused,
)
from kvtransfer.transports.base import Dialer
from pdserve.types import WorkerId
from support.kv_faults import Talker
from support.kv_pair import FIRST, LAYOUT, kv_pair, settle
from support.kv_script import BLOCK, RawReaderPair, hear_all_frames

HALF_A_MIB = replace(LAYOUT, block_size=2 * 4096)


async def test_frames_are_whole_blocks_in_order() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(18)  # five blocks, the last one partly filled
        export = pair.ends.offer_computed(ticket)
        reader = await pair.open_ready(ticket)
        await reader.say(Accept(0, 100 * BLOCK))
        frames, commit = await hear_all_frames(reader)
        assert [(f.seq, f.first_token, f.num_tokens) for f in frames] == [
            (0, 0, 8), (1, 8, 8), (2, 16, 2),
        ]  # fmt: skip
        assert [f.payload_len for f in frames] == [2 * BLOCK, 2 * BLOCK, BLOCK]
        assert commit.num_frames == 3
        assert commit.num_tokens == 18
        assert commit.first_token == FIRST
        await reader.say(Ack())
        assert await export.outcome() is ExportOutcome.ACKED
        await reader.hear_end()
        assert export.bytes_sent == 5 * BLOCK


@pytest.mark.parametrize(
    ("max_frame_bytes", "wanted"),
    [
        (8 * MIB, [2, 4, 8, 16, 4]),
        (3 * MIB, [2, 4, 6, 6, 6, 6, 4]),
        (MIB // 2, [1] * 34),
        (1, [1] * 34),
    ],
)
async def test_the_first_frame_is_small_and_each_next_one_twice_as_large(
    max_frame_bytes: int, wanted: list[int]
) -> None:
    """In blocks of half a MiB: the reader waits for the first one's sum."""
    config = TransferConfig(max_frame_bytes=max_frame_bytes)
    dialers: list[Dialer] = []
    async with kv_pair(
        config=config,
        layout=HALF_A_MIB,
        num_blocks=34,
        wrap=lambda each: dialers.append(each.dialer),
    ) as ends:
        ticket = ends.ticket(34 * HALF_A_MIB.block_size)
        ends.offer_computed(ticket)
        reader = Talker(await dialers[0].dial(ends.endpoint.address))
        await reader.say(Open(ticket.ticket_id, ticket.epoch, WorkerId("d"), "b", ticket.layout))
        assert isinstance(await reader.hear(), Ready)
        await reader.say(Accept(0, 34 * HALF_A_MIB.block_bytes))
        frames, _ = await hear_all_frames(reader)
        assert [each.num_tokens // HALF_A_MIB.block_size for each in frames] == wanted
        await reader.connection.close()


async def test_frames_leave_while_the_rest_is_computed() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(10)
        export = pair.ends.offer(ticket)
        reader = await pair.open_ready(ticket)
        await reader.say(Accept(0, 100 * BLOCK))
        export.advance(7)  # one whole block and a part that must wait
        first = await reader.hear()
        assert isinstance(first, Frame)
        assert first.num_tokens == 4
        export.advance(10)
        second = await reader.hear()
        assert isinstance(second, Frame)
        assert (second.first_token, second.num_tokens) == (4, 6)
        waiting = asyncio.create_task(reader.hear())
        await settle()
        assert not waiting.done(), "Commit before the first token is known"
        export.commit(FIRST)
        assert isinstance(await waiting, Commit)
        await reader.connection.close()


async def test_credit_bounds_what_is_sent() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(16)
        export = pair.ends.offer_computed(ticket)
        reader = await pair.open_ready(ticket)
        await reader.say(Accept(0, BLOCK + 1))
        for num_sent in (1, 2, 3):
            frame = await reader.hear()
            assert isinstance(frame, Frame)
            assert frame.payload_len == BLOCK
            await settle()
            assert export.bytes_sent == num_sent * BLOCK
            await reader.say(Credit(BLOCK))
        assert isinstance(await reader.hear(), Frame)
        assert isinstance(await reader.hear(), Commit)
        await reader.connection.close()


async def test_reading_may_start_at_a_later_block() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(10)
        pair.ends.offer_computed(ticket)
        reader = await pair.open_ready(ticket)
        await reader.say(Accept(8, 100 * BLOCK))
        frames, commit = await hear_all_frames(reader)
        assert [(f.seq, f.first_token, f.num_tokens) for f in frames] == [(0, 8, 2)]
        assert commit.num_tokens == 10
        await reader.connection.close()


async def test_nothing_is_sent_before_accept() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer_computed(ticket)
        reader = await pair.open_ready(ticket)
        await settle()
        assert export.bytes_sent == 0
        await reader.connection.close()


OUT_OF_ORDER: list[tuple[str, list[KvMessage]]] = [
    ("first", [Ack()]),
    ("first", [Credit(BLOCK)]),
    ("first", [Ready(4)]),
    ("first", [Finished()]),
    ("first", [Accept(0, BLOCK - 1)]),
    ("first", [Accept(2, BLOCK)]),
    ("first", [Accept(8, BLOCK)]),
    ("first", [Accept(0, 100 * BLOCK, coding="int4")]),
    ("first", [Accept(0, 100 * BLOCK, in_place=True, coding="int8")]),
    ("accepted", [Accept(0, BLOCK)]),
    ("accepted", [Refused("x", "y")]),
]


@pytest.mark.parametrize(("state", "messages"), OUT_OF_ORDER)
async def test_a_reader_out_of_order_is_dropped(state: str, messages: list[KvMessage]) -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer(ticket)
        reader = await pair.open_ready(ticket)
        if state == "accepted":
            await reader.say(Accept(0, BLOCK))
        for message in messages:
            await reader.say(message)
        await reader.hear_end()
        assert export.is_held
        assert pair.ends.exporter.num_failed_reads == 1


async def test_an_ack_before_commit_is_no_ack() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer(ticket)
        reader = await pair.open_ready(ticket)
        await reader.say(Accept(0, BLOCK))
        await reader.say(Ack())
        await reader.hear_end()
        assert not export.has_ended


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", seal(99, {}), encode(Ready(1)), encode(Ack()), encode(Accept(0, 9))]
)
async def test_a_connection_that_does_not_open_is_closed(data: bytes) -> None:
    async with RawReaderPair() as pair:
        pair.ends.offer(pair.ends.ticket(4))
        reader = await pair.connect()
        await reader.connection.send(data)
        await reader.hear_end()
        assert pair.ends.exporter.num_failed_reads == 1


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with RawReaderPair(open_timeout_s=0.02) as pair:
        await (await pair.connect()).hear_end()


async def test_nonsense_after_open_leaves_the_ticket_held() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer(ticket)
        reader = await pair.open_ready(ticket)
        await reader.connection.send(b"nonsense")
        await reader.hear_end()
        assert export.is_held
        assert export.last_failure is not None
        assert export.last_failure.code == "frame_corrupt"


async def test_nack_leaves_the_ticket_held_and_says_why() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer_computed(ticket)
        reader = await pair.open_ready(ticket)
        await reader.say(Nack("frame_corrupt", "frame 0: checksum differs"))
        await reader.hear_end()
        assert export.is_held
        assert str(export.last_failure) == "frame 0: checksum differs"
