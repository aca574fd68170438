"""KV through Ray's object store: the suites of all transports, and what only this one has."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Iterator
from dataclasses import replace
from types import FunctionType, ModuleType
from typing import Any

import pytest
import ray
from integration import test_kv_faults, test_kv_read, test_kv_transports

from cluster.onray.calls import answer
from kvtransfer.config import MIB, TransferConfig
from kvtransfer.transports.base import Connection
from kvtransfer.transports.ray import RayListener
from pdserve.errors import PeerUnreachable
from pdserve.types import Endpoint
from support.kv_pair import FIRST, LAYOUT, ByteBuffers, kv_pair, until
from support.kv_transports import Carrier, make_carrier
from support.ray_cluster import wait_until
from support.ray_kv import NUM_TOKENS, HoldingActor, ReadingActor, start, store_stats

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def over_ray(suite: ModuleType) -> Iterator[tuple[str, Any]]:
    """The tests of a module that take a transport, with this one instead of theirs."""
    for name, test in vars(suite).items():
        if name.startswith("test_") and "transport" in inspect.signature(test).parameters:
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            copy = FunctionType(test.__code__, test.__globals__, name)
            copy.__annotations__ = test.__annotations__
            copy.pytestmark = [  # type: ignore[attr-defined]
                *(mark for mark in marks if mark.args[0] != "transport"),
                pytest.mark.parametrize("transport", ["ray"]).mark,
            ]
            yield name, copy


for each in (test_kv_transports, test_kv_read, test_kv_faults):
    globals().update(over_ray(each))


async def test_a_holder_killed_while_it_is_read_leaves_nothing() -> None:
    holder = start(HoldingActor)
    address = await answer(holder.begin.remote())
    async with kv_pair("ray") as pair:
        reading = pair.redeem(pair.ticket(NUM_TOKENS, endpoints=(Endpoint("ray", address),)))
        await until(lambda: pair.intake.bytes_taken > 0)
        ray.kill(holder)
        with pytest.raises(PeerUnreachable):
            await reading
        del reading
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
    await nothing_stored()


async def test_a_reader_killed_while_it_reads_leaves_the_kv_to_the_next() -> None:
    async with kv_pair("ray") as pair:
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer(ticket)
        export.advance(8)
        reader = start(ReadingActor)
        await answer(reader.begin.remote(pair.endpoint.address))
        ray.kill(reader)
        while not export.is_held:  # noqa: ASYNC110 (its connection breaks in its own time)
            await asyncio.sleep(0.01)
        later = replace(ticket, epoch=2)
        assert export.rearm(later)
        export.advance(ticket.num_tokens)
        export.commit(FIRST)
        pair.take(await pair.redeem(later), export)
    await nothing_stored()


async def test_frames_in_the_store_stay_within_its_share_and_none_spills() -> None:
    layout = replace(LAYOUT, num_layers=30, num_kv_heads=3, head_dim=64, block_size=16)
    most_bytes = 4 * MIB
    listener = RayListener(store_bytes=most_bytes)

    def wrap(carrier: Carrier) -> None:
        carrier.listener = listener

    config = TransferConfig(max_frame_bytes=MIB)
    async with kv_pair("ray", config=config, layout=layout, num_blocks=128, wrap=wrap) as pair:
        exports = [pair.offer_computed(pair.ticket(20 * 16)) for _ in range(6)]
        read = await asyncio.gather(*(pair.redeem(export.ticket) for export in exports))
        for imported, export in zip(read, exports, strict=True):
            pair.take(imported, export)
        assert layout.block_bytes < listener.budget.most_bytes <= most_bytes
    assert listener.budget.used_bytes == 0
    await nothing_stored()


async def test_messages_that_were_read_are_valid_after_the_holder_let_go() -> None:
    """Their memory is held by who looks at it."""
    carrier = make_carrier("ray", ByteBuffers(LAYOUT, 4, 1), TransferConfig())
    messages = [bytes([number]) * 100_000 for number in range(3)]

    async def handle(connection: Connection) -> None:
        await connection.receive()
        for message in messages:
            await connection.send(message)

    endpoint = await carrier.listener.start(handle)
    near = await carrier.dialer.dial(endpoint.address)
    await near.send(b"begin")
    got = [await near.receive() for _ in messages]
    assert all(isinstance(each, memoryview) and each.readonly for each in got)
    await carrier.dialer.close()
    await carrier.listener.close()
    assert got == messages
    del got
    await nothing_stored()


async def test_holders_of_another_cluster_are_left_to_the_next_transport() -> None:
    async with kv_pair("ray") as pair:
        elsewhere = Endpoint("ray", f"{'ab' * 28}@{pair.endpoint.address.partition('@')[2]}")
        ticket = pair.ticket(9, endpoints=(elsewhere, pair.endpoint))
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)
        with pytest.raises(PeerUnreachable, match="not in this cluster"):
            await pair.redeem(replace(ticket, ticket_id="x", endpoints=(elsewhere,)))


async def nothing_stored() -> None:
    """Ray frees objects a little after the last look at them. The error of a read that failed shows
    its frames' memory until it is collected."""
    gc.collect()
    await asyncio.to_thread(wait_until, lambda: store_stats().num_local_objects == 0)
    stats = store_stats()
    assert (stats.object_store_bytes_used, stats.spilled_bytes_total) == (0, 0)
