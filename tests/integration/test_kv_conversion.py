"""A KV read between unlike layouts, over every transport and into memory as on a device."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from engine.block_pool import BlockLease
from kvtransfer.config import TransferConfig
from kvtransfer.convert import BlockRun
from kvtransfer.exporter import Export
from kvtransfer.reader_session import ImportedKv
from pdserve.errors import LayoutMismatch
from pdserve.types import KVLayout
from support.kv_faults import Tap, expect_nothing_written, flip
from support.kv_pair import KvPair, kv_pair
from support.kv_transports import each_transport

HOLDER = KVLayout(num_layers=2, num_kv_heads=3, head_dim=4, block_size=4, dtype="float32")
NUM_TOKENS = 30


def values(layout: KVLayout, blocks: list[memoryview], num_tokens: int) -> torch.Tensor:
    """[layer, k or v, head, token, dim] in float32."""
    run = BlockRun(layout, blocks, 0)
    shape = (layout.num_layers, 2, layout.num_kv_heads, layout.block_size, layout.head_dim)
    dtype = getattr(torch, layout.dtype)
    whole = torch.cat([torch.frombuffer(each, dtype=dtype).view(shape) for each in run.pieces], 3)
    return whole[:, :, :, :num_tokens].float()


def held(pair: KvPair, export: Export) -> torch.Tensor:
    views = [pair.source.view(block_id) for block_id in export.lease.block_ids]
    return values(pair.source.layout, views, export.num_tokens)


def taken(pair: KvPair, imported: ImportedKv) -> torch.Tensor:
    views = [pair.target.view(block_id) for block_id in imported.lease.block_ids]
    found = values(pair.target.layout, views, imported.num_tokens).clone()
    imported.lease.release()
    return found


def fill_with_numbers(pair: KvPair) -> None:
    """The noise of a test pool is no KV: some of it is not a number."""
    layout = pair.source.layout
    dtype = getattr(torch, layout.dtype)
    torch.manual_seed(5)
    for block_id in range(pair.source.num_blocks):
        block = torch.frombuffer(pair.source.view(block_id), dtype=dtype)
        block.copy_(torch.randn(len(block)))


CASES = {
    "smaller blocks": replace(HOLDER, block_size=3),
    "larger blocks": replace(HOLDER, block_size=16),
    "bfloat16": replace(HOLDER, dtype="bfloat16"),
    "a part of the heads": replace(HOLDER, first_kv_head=1, num_kv_heads=2),
    "all of it": replace(HOLDER, block_size=7, dtype="float16", first_kv_head=2, num_kv_heads=1),
}


@pytest.mark.parametrize("staged", [(), ("reader",)], ids=["host", "device"])
@pytest.mark.parametrize("reader", CASES.values(), ids=CASES.keys())
@each_transport()
async def test_what_arrives_is_what_was_held_in_the_readers_layout(
    transport: str, reader: KVLayout, staged: Collection[str]
) -> None:
    config = TransferConfig(max_frame_bytes=3 * HOLDER.block_bytes)
    async with kv_pair(
        transport, layout=HOLDER, reader_layout=reader, config=config, staged=staged
    ) as pair:
        fill_with_numbers(pair)
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        imported = await pair.redeem(ticket)
        assert imported.timing.num_bytes == HOLDER.num_blocks(NUM_TOKENS) * HOLDER.block_bytes
        heads = slice(reader.first_kv_head, reader.first_kv_head + reader.num_kv_heads)
        wanted = held(pair, export)[:, :, heads].to(getattr(torch, reader.dtype)).float()
        assert torch.equal(taken(pair, imported), wanted)


async def test_a_wider_dtype_is_exact() -> None:
    holder = replace(HOLDER, dtype="bfloat16")
    async with kv_pair(layout=holder, reader_layout=replace(HOLDER, block_size=8)) as pair:
        fill_with_numbers(pair)
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        assert torch.equal(taken(pair, await pair.redeem(ticket)), held(pair, export))


@pytest.mark.parametrize("num_cached", [1, 2, 3])
async def test_cached_blocks_that_end_amid_the_holders_are_not_written(num_cached: int) -> None:
    """Blocks of 3 tokens against 4: the read starts before what is cached ends."""
    async with kv_pair(layout=HOLDER, reader_layout=replace(HOLDER, block_size=3)) as pair:
        fill_with_numbers(pair)

        async def make_room(num_tokens: int) -> BlockLease:
            lease = await pair.make_room(num_tokens)
            lease.num_cached = num_cached
            return lease

        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        before = bytes(pair.target.view(0))
        reading = pair.redeem(ticket, make_room)
        imported = await reading
        cached = 3 * num_cached
        assert imported.timing.num_tokens == NUM_TOKENS - cached
        assert bytes(pair.target.view(imported.lease.block_ids[0])) == before
        found = taken(pair, imported)
        assert torch.equal(found[:, :, :, cached:], held(pair, export)[:, :, :, cached:])


async def test_a_damaged_payload_is_not_converted() -> None:
    tap = Tap(flip(3, -1, 0x10))
    layout = replace(HOLDER, block_size=8)
    async with kv_pair(layout=HOLDER, reader_layout=layout, wrap_handler=tap.wrap_handler) as pair:
        await expect_nothing_written(pair)


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (replace(HOLDER, num_layers=3), "num_layers: holder 2, reader 3"),
        (replace(HOLDER, head_dim=8), "head_dim: holder 4, reader 8"),
        (replace(HOLDER, num_kv_heads=4), "num_kv_heads: holder 3, reader 4"),
    ],
)
async def test_what_cannot_be_converted_is_refused_by_field(reader: KVLayout, words: str) -> None:
    async with kv_pair(layout=HOLDER, reader_layout=reader) as pair:
        ticket = pair.ticket(9)
        export = pair.offer_computed(ticket)
        with pytest.raises(LayoutMismatch, match=words):
            await pair.redeem(ticket)
        assert not export.has_ended
