"""What a reader waits for, and for how long: answers, room, its intake."""

import asyncio
from collections.abc import Sequence

import pytest

from engine.block_pool import BlockLease
from kvtransfer.block_bytes import Fill, bounded
from kvtransfer.config import TransferConfig
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import Alive, Credit, Finished, FinishedAtPrefill, Ready, Refused
from kvtransfer.transports.base import Placed
from pdserve.errors import (
    PeerSilent,
    PeerUnreachable,
    TicketExpired,
    TicketUnknown,
)
from pdserve.types import Endpoint, TransferTicket
from support.kv_faults import Talker
from support.kv_pair import KvPair, kv_pair, settle
from support.kv_script import (
    BLOCK,
    NUM_TOKENS,
    Read,
    begin,
    commit,
    expect,
    frame,
    last_frame,
    sends,
)


async def test_a_silent_holder_is_given_up_in_time() -> None:
    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await reader.hear()

    config = TransferConfig(ready_timeout_s=0.02)
    await expect(Read(script), PeerSilent, "no answer to Open", config)


async def test_a_holder_that_falls_silent_is_given_up_whatever_the_tickets_time() -> None:
    config = TransferConfig(silence_timeout_s=0.03, max_frame_bytes=3 * BLOCK)
    await expect(sends(frame), PeerSilent, "8 of 10 tokens, then nothing", config)


async def test_a_holder_that_lives_is_waited_for_whatever_the_tickets_time() -> None:
    """It says so several times, with pauses, for longer than the ticket has."""

    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await begin(reader)
        for make in (frame, last_frame, commit):
            for _ in range(4):
                await asyncio.sleep(0.01)
                await reader.say(Alive())
            await reader.say(make(ticket))

    async with kv_pair(wrap_handler=(read := Read(script)).holder) as pair:
        await read.redeem(pair, expires_in_s=0.01)


async def test_a_payload_that_does_not_come_is_given_up() -> None:
    async def put(index: int, pieces: Sequence[memoryview], placed: Placed) -> None:
        await asyncio.Event().wait()

    fill = bounded(Fill(put, 7), 0.01)
    assert fill.at_once_bytes == 7
    with pytest.raises(PeerSilent, match="payload"):
        await fill.put(0, (), lambda piece: None)


async def test_no_room_within_the_time_the_holder_keeps_it() -> None:
    async with kv_pair() as pair:
        ticket = pair.ticket(NUM_TOKENS, expires_in_s=0.03)
        pair.offer_computed(ticket)
        rooms = WaitingRooms(pair)
        with pytest.raises(TicketExpired, match="not read within"):
            await pair.redeem(ticket, rooms.make_room)
        assert rooms.num_waiting == 0


class WaitingRooms:
    """Room that comes when the test says so."""

    def __init__(self, pair: KvPair) -> None:
        self._pair = pair
        self.num_waiting = 0
        self.asked = asyncio.Event()
        self.free = asyncio.Event()

    async def make_room(self, num_tokens: int) -> BlockLease:
        self.num_waiting += 1
        self.asked.set()
        try:
            await self.free.wait()
            return await self._pair.make_room(num_tokens)
        finally:
            self.num_waiting -= 1


@pytest.mark.parametrize("end", ["refused", "finished", "broken"])
async def test_a_reader_waiting_for_room_hears_the_end(end: str) -> None:
    go_on = asyncio.Event()

    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await reader.hear()
        await reader.say(Ready(NUM_TOKENS))
        await go_on.wait()
        if end == "refused":
            await reader.say(Refused("ticket_unknown", "cancelled"))
        elif end == "finished":
            await reader.say(Finished())
        await reader.connection.close()

    read = Read(script)
    async with kv_pair(wrap_handler=read.holder) as pair:
        ticket = read.ticket = pair.ticket(NUM_TOKENS)
        rooms = WaitingRooms(pair)
        task = pair.redeem(ticket, rooms.make_room)
        await rooms.asked.wait()
        go_on.set()
        error = {"refused": TicketUnknown, "finished": FinishedAtPrefill, "broken": PeerUnreachable}
        with pytest.raises(error[end]):
            await task
        assert rooms.num_waiting == 0


async def test_room_that_comes_with_the_refusal_is_given_back() -> None:
    """Both in the same turn of the loop: the lease must not be lost, whichever is seen first."""
    go_on = asyncio.Event()

    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await reader.hear()
        await reader.say(Ready(NUM_TOKENS))
        await go_on.wait()
        await reader.say(Refused("ticket_unknown", "cancelled"))
        await reader.connection.close()

    read = Read(script)
    async with kv_pair(wrap_handler=read.holder) as pair:
        ticket = read.ticket = pair.ticket(NUM_TOKENS)
        rooms = WaitingRooms(pair)
        task = pair.redeem(ticket, rooms.make_room)
        await rooms.asked.wait()
        rooms.free.set()
        go_on.set()
        with pytest.raises(TicketUnknown):
            await task


async def test_an_error_of_make_room_goes_to_the_caller() -> None:
    read = sends()

    async def no_room(num_tokens: int) -> BlockLease:
        raise KeyError("no such pool")

    async with kv_pair(wrap_handler=read.holder) as pair:
        read.ticket = pair.ticket(NUM_TOKENS)
        with pytest.raises(KeyError, match="no such pool"):
            await pair.redeem(read.ticket, no_room)
        await read.holder.done.wait()


@pytest.mark.parametrize("transports", [(), ("shm",), ("shm", "ray")])
async def test_no_common_transport_names_both_sides(transports: tuple[str, ...]) -> None:
    async with kv_pair() as pair:
        endpoints = tuple(Endpoint(name, "somewhere") for name in transports)
        offered = ", ".join(transports) or "nothing"
        with pytest.raises(PeerUnreachable, match=f"holder has {offered}, reader has inproc"):
            await pair.redeem(pair.ticket(NUM_TOKENS, endpoints=endpoints))


async def test_the_first_common_transport_is_taken() -> None:
    async with kv_pair() as pair:
        endpoints = (Endpoint("shm", "nowhere"), pair.endpoint, Endpoint("inproc", "inproc-99"))
        ticket = pair.ticket(NUM_TOKENS, endpoints=endpoints)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)


async def test_credit_comes_back_only_after_the_intake_took_the_bytes() -> None:
    returned: list[int] = []

    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await begin(reader)
        await reader.say(frame(ticket))
        message = await reader.hear()
        assert isinstance(message, Credit)
        returned.append(message.num_bytes)
        await reader.say(last_frame(ticket))
        await reader.say(commit(ticket))

    read = Read(script)
    config = TransferConfig(credit_bytes=2 * BLOCK)
    async with kv_pair(config=config, wrap_handler=read.holder) as pair:
        pair.intake.set_unlimited(False)
        await pair.intake.take(2 << 30)  # nothing is left of this step's budget
        task = asyncio.create_task(read.redeem(pair))
        await settle()
        assert pair.intake.num_waiting == 1
        assert returned == []
        pair.intake.refill()
        pair.intake.refill()
        await task
        assert returned == [2 * BLOCK]


async def test_concurrent_reads_share_the_intake_in_order() -> None:
    async with kv_pair() as pair:
        tickets = [pair.ticket(4) for _ in range(3)]
        exports = [pair.offer_computed(ticket) for ticket in tickets]
        pair.intake.set_unlimited(False)
        await pair.intake.take(pair.intake.bytes_per_step)
        tasks = [pair.redeem(ticket) for ticket in tickets]
        await settle()
        assert pair.intake.num_waiting == 3
        pair.intake.set_unlimited(True)
        for task, export in zip(tasks, exports, strict=True):
            pair.take(await task, export)


async def test_a_frame_goes_in_block_by_block_as_the_budget_allows() -> None:
    async with kv_pair() as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        pair.intake = IntakeBudget(1)  # what is left of it lets one block pass
        pair.intake.set_unlimited(False)
        block_bytes = pair.source.layout.block_bytes
        task = pair.redeem(ticket)
        num_blocks = pair.source.layout.num_blocks(NUM_TOKENS)
        for number in range(1, num_blocks + 1):
            while pair.intake.num_waiting == 0 and not task.done():
                await settle()
            assert pair.intake.bytes_taken == number * block_bytes
            for _ in range(block_bytes):  # the debt
                pair.intake.refill()
        pair.take(await task, export)
