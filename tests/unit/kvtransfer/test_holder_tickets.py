"""Which reader gets a ticket, and how a ticket's end reaches it (docs/protocol.md section 4)."""

import asyncio
from dataclasses import replace

import pytest

from kvtransfer.exporter import Export, ExportOutcome
from kvtransfer.messages import Accept, Ack, Alive, Commit, Frame, KvMessage, Ready, Refused
from pdserve.errors import PeerSilent
from support.kv_faults import Talker
from support.kv_pair import FIRST, LAYOUT, settle
from support.kv_script import BLOCK, RawReaderPair, hear_all_frames, hear_refusal, opening


async def test_an_early_open_waits_for_its_ticket() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        reader = await pair.open(ticket)
        await settle()
        export = pair.ends.offer(ticket)
        assert await reader.hear() == Ready(4)
        assert export.is_open
        await reader.connection.close()


async def test_an_early_open_waits_for_its_epoch() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer(ticket)
        later = replace(ticket, epoch=2)
        reader = await pair.open(later)
        await settle()
        assert not export.is_open
        export.rearm(later)
        assert await reader.hear() == Ready(4)
        await reader.connection.close()


async def test_an_unknown_ticket_is_refused_in_time() -> None:
    async with RawReaderPair(open_timeout_s=0.02) as pair:
        reader = await pair.open(pair.ends.ticket(4))
        assert await hear_refusal(reader) == "ticket_unknown"


async def test_a_reader_that_leaves_while_it_waits_does_not_open() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        reader = await pair.open(ticket)
        await settle()
        await reader.connection.close()
        await settle()
        export = pair.ends.offer(ticket)
        await settle()
        assert export.num_reads == 0


async def test_a_stale_epoch_is_refused_and_changes_nothing() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer(replace(ticket, epoch=5))
        assert await hear_refusal(await pair.open(ticket)) == "stale_epoch"
        assert export.num_reads == 0
        assert not export.is_held


async def test_another_layout_is_refused_and_changes_nothing() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer(ticket)
        reader = await pair.connect()
        await reader.say(replace(opening(ticket), layout=replace(LAYOUT, head_dim=8)))
        assert await reader.hear() == Refused("layout_mismatch", "head_dim: holder 4, reader 8")
        assert export.num_reads == 0


async def test_a_second_open_of_the_same_epoch_replaces_the_first() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer_computed(ticket)
        older = await pair.open_ready(ticket)
        newer = await pair.open_ready(ticket)
        assert await hear_refusal(older) == "stale_epoch"
        await newer.say(Accept(0, BLOCK))
        await hear_all_frames(newer)
        await newer.say(Ack())
        assert await export.outcome() is ExportOutcome.ACKED


async def test_rearm_fences_the_old_reader() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(8)
        export = pair.ends.offer(ticket)
        export.advance(4)
        older = await pair.open_ready(ticket)
        await older.say(Accept(0, 10 * BLOCK))
        assert isinstance(await older.hear(), Frame)
        later = replace(ticket, epoch=2)
        export.rearm(later)
        assert await hear_refusal(older) == "stale_epoch"
        assert await hear_refusal(await pair.open(ticket)) == "stale_epoch"
        newer = await pair.open_ready(later)
        await newer.say(Accept(0, 10 * BLOCK))
        export.advance(8)
        frames = [await newer.hear()]
        export.commit(FIRST)
        rest, commit = await hear_all_frames(newer)
        assert {message.epoch for message in [*frames, *rest, commit]} == {2}  # type: ignore[union-attr]
        await newer.say(Ack())
        assert await export.outcome() is ExportOutcome.ACKED


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (state, end)
        for state in ("waiting", "open", "accepted", "committing")
        for end in ("close", "expire", "finish")
        if (state, end) != ("accepted", "expire")  # it computes: its time stands still
    ],
)
async def test_the_end_of_a_ticket_reaches_its_reader(state: str, end: str) -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4, expires_in_s=0.02 if end == "expire" else 60.0)
        export = pair.ends.offer(ticket)
        reader = None if state == "waiting" else await pair.open_ready(ticket)
        if reader is not None and state in ("accepted", "committing"):
            await reader.say(Accept(0, BLOCK))
        if reader is not None and state == "committing":
            export.advance(4)
            export.commit(FIRST)
            await hear_all_frames(reader)
        _bring_to_end(export, end)
        outcome = await export.outcome()
        pair.ends.release_holder()
        assert pair.ends.holder_pool.num_free == pair.ends.holder_pool.num_blocks
        assert outcome is (ExportOutcome.EXPIRED if end == "expire" else ExportOutcome.CLOSED)
        farewell = await (reader or await pair.open(ticket)).hear()
        wanted = {"close": "ticket_unknown", "expire": "ticket_expired", "finish": "Finished"}[end]
        assert getattr(farewell, "code", type(farewell).__name__) == wanted


def _bring_to_end(export: Export, end: str) -> None:
    if end == "close":
        export.close("ticket_unknown", "cancelled")
    elif end == "finish":
        export.finish_early()
    elif export.is_open and export.first_token is None:
        export.advance(4)
        export.commit(FIRST)


async def test_a_reader_hears_that_the_holder_lives_while_it_computes() -> None:
    async with RawReaderPair(silence_timeout_s=0.1) as pair:
        ticket = pair.ends.ticket(8, expires_in_s=0.01)
        export = pair.ends.offer(ticket)
        reader = await pair.open_ready(ticket)
        await reader.say(Accept(0, 10 * BLOCK))
        for _ in range(3):
            assert await reader.hear() == Alive()
        export.advance(4)
        assert isinstance(await hear_other(reader), Frame)
        assert await reader.hear() == Alive()
        export.advance(8)
        assert isinstance(await hear_other(reader), Frame)
        export.commit(FIRST)
        assert isinstance(await hear_other(reader), Commit)
        await reader.say(Ack())
        assert await export.outcome() is ExportOutcome.ACKED


async def hear_other(reader: Talker) -> KvMessage:
    """The next message that is not Alive."""
    while isinstance(message := await reader.hear(), Alive):
        pass
    return message


@pytest.mark.parametrize("state", ["open", "committing"])
async def test_a_reader_that_waits_for_nothing_hears_nothing(state: str) -> None:
    async with RawReaderPair(silence_timeout_s=0.01) as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer(ticket)
        reader = await pair.open_ready(ticket)
        if state == "committing":
            export.advance(4)
            export.commit(FIRST)
            await reader.say(Accept(0, BLOCK))
            await hear_all_frames(reader)
        await asyncio.sleep(0.02)  # many times what it would have to say it in
        export.close("ticket_unknown", "cancelled")
        assert await hear_refusal(reader) == "ticket_unknown"


async def test_a_reader_that_takes_nothing_is_cut() -> None:
    async with RawReaderPair(send_timeout_s=0.02, max_frame_bytes=BLOCK) as pair:
        ticket = pair.ends.ticket(4 * 30)
        export = pair.ends.offer_computed(ticket)
        reader = await pair.open_ready(ticket)
        await reader.say(Accept(0, 100 * BLOCK))
        while not export.is_held:
            await pair.ends.exporter.idle()
        assert isinstance(export.last_failure, PeerSilent)


async def test_close_tells_readers_and_refuses_new_ones() -> None:
    async with RawReaderPair() as pair:
        ticket = pair.ends.ticket(4)
        export = pair.ends.offer(ticket)
        reader = await pair.open_ready(ticket)
        await pair.ends.exporter.close()
        assert await hear_refusal(reader) == "ticket_unknown"
        assert await export.outcome() is ExportOutcome.CLOSED
        await (await pair.open(ticket)).hear_end()
