"""Measuring a way: a read of blank blocks over each transport, that gives way to requests."""

from __future__ import annotations

import asyncio

import pytest

from kvtransfer.config import TransferConfig
from kvtransfer.messages import Accept, Commit, Frame, Probe, Ready, Refused
from kvtransfer.rate_probe import TRIES, RateProbe, WayRate
from pdserve.clock import MonotonicClock
from pdserve.errors import PeerUnreachable, TransferError
from pdserve.types import WorkerId
from support.kv_faults import Talker, Tap, break_at
from support.kv_pair import LAYOUT, NUM_BLOCKS, KvPair, kv_pair, settle, until
from support.kv_transports import each_transport

BLOCK = LAYOUT.block_bytes
CONFIG = TransferConfig(kv_probe_bytes=20 * BLOCK, max_frame_bytes=3 * BLOCK)


class PatientClock(MonotonicClock):
    """Notes what it is asked to sleep and lets the loop turn instead."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        await settle()


def rates(pair: KvPair, config: TransferConfig = CONFIG) -> RateProbe:
    return RateProbe(pair.importer, PatientClock(), config, "b")


@each_transport()
async def test_a_way_is_measured_and_leaves_nothing(transport: str) -> None:
    async with kv_pair(transport, config=CONFIG) as pair:
        found = await rates(pair).measure(pair.endpoint, LAYOUT)
        assert found is not None
        assert found.transport == transport
        assert found.bytes_per_s > 0
        assert found.num_bytes == 20 * BLOCK
        assert pair.reader_pool.num_free == NUM_BLOCKS
        ticket = pair.ticket(30)  # and requests go as ever
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)


@pytest.mark.parametrize("end", ["holder", "reader"])
async def test_memory_on_a_device_is_measured(end: str) -> None:
    async with kv_pair(config=CONFIG, staged=(end,)) as pair:
        assert await rates(pair).measure(pair.endpoint, LAYOUT) is not None


async def test_a_probe_shows_nobodys_kv() -> None:
    """The pool of a pair starts full of noise."""
    async with kv_pair(config=CONFIG) as pair:
        reader = Talker(await pair.importer.connect(pair.endpoint))
        await reader.say(Probe(5 * LAYOUT.block_size, WorkerId("d"), "b"))
        assert await reader.hear() == Ready(5 * LAYOUT.block_size)
        await reader.say(Accept(0, 1 << 20))
        num_bytes = 0
        while isinstance(message := await reader.hear(), Frame):
            num_bytes += message.payload_len
            assert not any(any(piece) for piece in message.pieces)
        assert isinstance(message, Commit)
        assert num_bytes == 5 * BLOCK
        await reader.connection.close()


async def test_while_a_ticket_is_offered_probes_wait_and_give_up() -> None:
    async with kv_pair(config=CONFIG) as pair:
        export = pair.offer(pair.ticket(8))
        tap = rates(pair)
        assert await tap.measure(pair.endpoint, LAYOUT) is None
        assert pair.holder_pool.num_free == NUM_BLOCKS - 2
        export.close("ticket_unknown", "enough")
        assert await tap.measure(pair.endpoint, LAYOUT) is not None


async def test_a_ticket_ends_the_probe_that_runs() -> None:
    """The holder's device is writing zeros when the ticket comes."""
    async with kv_pair(config=CONFIG, staged=("holder",)) as pair:
        gate = pair.copiers["holder"].write_gate
        gate.clear()
        measuring = asyncio.create_task(rates(pair).measure(pair.endpoint, LAYOUT))
        await until(lambda: pair.copiers["holder"].num_writes == 1)
        ticket = pair.ticket(8)
        export = pair.offer_computed(ticket)
        gate.set()
        await until(lambda: pair.holder_pool.num_free == NUM_BLOCKS - 2)
        pair.take(await pair.redeem(ticket), export)
        assert await measuring is None or pair.copiers["holder"].num_writes > 1


async def test_a_read_here_ends_the_probe_and_it_comes_again_later() -> None:
    async with kv_pair(config=CONFIG, staged=("holder",)) as pair:
        gate = pair.copiers["holder"].write_gate
        gate.clear()
        measuring = asyncio.create_task(rates(pair).measure(pair.endpoint, LAYOUT))
        await until(lambda: pair.copiers["holder"].num_writes == 1)
        ticket = pair.ticket(8)
        reading = pair.redeem(ticket)
        await until(pair.importer.busy.is_set)
        await settle()
        assert not measuring.done()
        export = pair.offer_computed(ticket)
        gate.set()
        pair.take(await reading, export)
        assert isinstance(await measuring, WayRate)


async def test_a_peer_that_goes_is_told_and_leaves_nothing() -> None:
    tap = Tap(break_at(3))
    async with kv_pair(config=CONFIG, wrap_handler=tap.wrap_handler) as pair:
        with pytest.raises(PeerUnreachable):
            await rates(pair).measure(pair.endpoint, LAYOUT)
        assert tap.names()[0] == "Probe"
        await until(lambda: pair.holder_pool.num_free == NUM_BLOCKS)


@each_transport()
async def test_a_small_pool_is_measured_with_half_of_it(transport: str) -> None:
    config = TransferConfig(kv_probe_bytes=(NUM_BLOCKS + 5) * BLOCK, max_frame_bytes=3 * BLOCK)
    async with kv_pair(transport, config=config) as pair:
        found = await rates(pair, config).measure(pair.endpoint, LAYOUT)
        assert found is not None
        assert found.num_bytes == NUM_BLOCKS // 2 * BLOCK
        assert pair.holder_pool.num_free == NUM_BLOCKS


@pytest.mark.parametrize("num_tokens", [0, LAYOUT.block_size])
async def test_nothing_to_read_is_refused_for_good(num_tokens: int) -> None:
    async with kv_pair(config=CONFIG, num_blocks=1 if num_tokens else NUM_BLOCKS) as pair:
        reader = Talker(await pair.importer.connect(pair.endpoint))
        await reader.say(Probe(num_tokens, WorkerId("d"), "b"))
        refused = await reader.hear()
        assert isinstance(refused, Refused)
        assert refused.code == TransferError.code
        await reader.hear_end()


async def test_probes_take_a_tenth_of_the_time_at_most() -> None:
    """What is slept after each: nine times what it took."""
    async with kv_pair(config=CONFIG) as pair:
        clock = PatientClock()
        probe = RateProbe(pair.importer, clock, CONFIG, "b")
        before = clock.now()
        await probe.measure(pair.endpoint, LAYOUT)
        took_s = clock.now() - before
        (slept_s,) = clock.slept_s
        assert 0 < slept_s <= 9 * took_s
        pair.offer(pair.ticket(8))
        clock.slept_s.clear()
        assert await probe.measure(pair.endpoint, LAYOUT) is None
        assert [each for each in clock.slept_s if each >= 1.0] == [1.0, 2.0, 4.0, 8.0]
        assert len(clock.slept_s) == 2 * TRIES - 1
