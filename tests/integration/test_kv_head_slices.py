"""Reads of several holders' head slices into one lease: sessions as they are, over each transport.

No worker does this (kvtransfer/head_slices.py); the test plays the reader that would.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import torch

from engine.block_pool import BlockLease, BlockPool
from kvtransfer.codec import encode
from kvtransfer.config import TransferConfig
from kvtransfer.exporter import Exporter
from kvtransfer.head_slices import head_shares, split_heads
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import Ack, Open
from kvtransfer.reader_session import ReaderSession
from pdserve.clock import MonotonicClock
from pdserve.types import Endpoint, KVLayout, TicketId, TransferTicket, WorkerId
from support.kv_pair import FIRST, NUM_BLOCKS, ByteBuffers
from support.kv_transports import Carrier, each_transport, make_carrier

MODEL = KVLayout(num_layers=2, num_kv_heads=6, head_dim=4, block_size=4, dtype="float32")
NUM_TOKENS = 30
CONFIG = TransferConfig(max_frame_bytes=8192, credit_bytes=16384)


@dataclass
class Holder:
    buffers: ByteBuffers
    lease: BlockLease
    ticket: TransferTicket
    carrier: Carrier


@asynccontextmanager
async def holder(transport: str, number: int, layout: KVLayout) -> AsyncIterator[Holder]:
    """One that has computed its heads of the sequence; at the end they must have been read."""
    buffers = ByteBuffers(layout, NUM_BLOCKS, seed=number)
    carrier = make_carrier(transport, buffers, CONFIG)
    exporter = Exporter(buffers, MonotonicClock(), CONFIG)
    endpoint: Endpoint = await carrier.listener.start(exporter.serve)
    lease = BlockPool(NUM_BLOCKS).lease(layout.num_blocks(NUM_TOKENS))
    assert lease is not None
    ticket = TransferTicket(
        TicketId("t"), 1, WorkerId(f"prefill-{number}"), "a", (endpoint,), layout, NUM_TOKENS, 60.0
    )
    export = exporter.offer(ticket, lease, NUM_TOKENS)
    export.advance(NUM_TOKENS)
    export.commit(FIRST)
    try:
        yield Holder(buffers, lease, ticket, carrier)
        await export.outcome()
    finally:
        lease.release()
        await exporter.close()
        await carrier.dialer.close()
        await carrier.listener.close()


def heads_of(lease: BlockLease, buffers: ByteBuffers) -> torch.Tensor:
    """[layer, k or v, head, token, dim], float32 as int32: noise is no number."""
    layout = buffers.layout
    shape = (layout.num_layers, 2, layout.num_kv_heads, layout.block_size, layout.head_dim)
    views = [buffers.view(block_id) for block_id in lease.block_ids]
    whole = torch.cat([torch.frombuffer(each, dtype=torch.int32).view(shape) for each in views], 3)
    return whole[:, :, :, :NUM_TOKENS]


@each_transport()
async def test_three_holders_fill_one_lease(transport: str) -> None:
    """The reader wants heads 1 to 5; they lie as 4 5 | 0 1 | 2 3, in blocks of 3, 4 and 8."""
    (own,) = split_heads(replace(MODEL, block_size=8), [range(1, 6)])
    groups = split_heads(MODEL, [range(4, 6), range(2), range(2, 4)])
    layouts = [replace(one, block_size=size) for one, size in zip(groups, (3, 4, 8), strict=True)]
    target = ByteBuffers(own, NUM_BLOCKS, seed=9)
    lease = BlockPool(NUM_BLOCKS).lease(own.num_blocks(NUM_TOKENS))
    assert lease is not None

    async def make_room(num_tokens: int) -> BlockLease:
        return lease

    wanted = []
    async with AsyncExitStack() as stack:
        holders = [
            await stack.enter_async_context(holder(transport, number, layout))
            for number, layout in enumerate(layouts)
        ]
        for share in head_shares(own, layouts):
            there = holders[share.holder]
            ticket = there.ticket
            connection = await there.carrier.dialer.dial(ticket.endpoints[0].address)
            reader = ReaderSession(connection, ticket, target, CONFIG, MonotonicClock())
            opening = Open(ticket.ticket_id, 1, WorkerId("decode-1"), "b", share.layout)
            await reader.run(opening, make_room, IntakeBudget(1 << 30), transport)
            await connection.send(encode(Ack()))
            first = share.layout.first_kv_head - ticket.layout.first_kv_head
            heads = slice(first, first + share.layout.num_kv_heads)
            wanted.append(heads_of(there.lease, there.buffers)[:, :, heads].clone())
    assert torch.equal(heads_of(lease, target), torch.cat(wanted, 2))
    lease.release()
