"""A KV read in 8 bits a value: over every transport, into unlike layouts, damaged, refused."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from kvtransfer.coding import CODINGS, EXACT, INT8, coded_block_bytes
from kvtransfer.config import TransferConfig
from kvtransfer.convert import BlockRun
from pdserve.types import KVLayout
from support.kv_faults import Tap, expect_nothing_written, flip
from support.kv_pair import KvPair, kv_pair
from support.kv_transports import each_transport

HOLDER = KVLayout(num_layers=2, num_kv_heads=2, head_dim=16, block_size=4, dtype="float32")
NUM_TOKENS = 30
READERS = {"alike": HOLDER, "unlike": replace(HOLDER, block_size=7, dtype="bfloat16")}


def asking(coding: str) -> TransferConfig:
    return TransferConfig(max_frame_bytes=3 * HOLDER.block_bytes, kv_in_flight=coding)


def fill_with_numbers(pair: KvPair) -> None:
    torch.manual_seed(5)
    for block_id in range(pair.source.num_blocks):
        block = torch.frombuffer(pair.source.view(block_id), dtype=torch.float32)
        block.copy_(torch.randn(len(block)))


def values(layout: KVLayout, blocks: list[memoryview]) -> torch.Tensor:
    """[row, token, dim] in float32."""
    run = BlockRun(layout, blocks, 0)
    shape = (-1, layout.block_size, layout.head_dim)
    dtype = getattr(torch, layout.dtype)
    whole = torch.cat([torch.frombuffer(each, dtype=dtype).view(shape) for each in run.pieces], 1)
    return whole[:, :NUM_TOKENS].float()


@pytest.mark.parametrize("ends", [(), ("holder", "reader")], ids=["host", "device"])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("coding", CODINGS)
@each_transport()
async def test_it_arrives_nearly_as_it_was_in_fewer_bytes(
    transport: str, coding: str, reader: KVLayout, ends: Collection[str]
) -> None:
    async with kv_pair(
        transport, layout=HOLDER, reader_layout=reader, config=asking(coding), staged=ends
    ) as pair:
        fill_with_numbers(pair)
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        imported = await pair.redeem(ticket)
        in_place = transport in ("shm", "nixl") and not ends  # read where it lies: exact
        sent_as = EXACT if in_place else coding
        num_blocks = HOLDER.num_blocks(NUM_TOKENS)
        assert imported.timing.num_bytes == num_blocks * coded_block_bytes(HOLDER, sent_as)
        assert imported.timing.coding == ("" if in_place else coding)
        held = values(HOLDER, [pair.source.view(each) for each in export.lease.block_ids])
        came = values(reader, [pair.target.view(each) for each in imported.lease.block_ids])
        error = (came - held).abs().max().item()
        assert error < (2.0**-6 if in_place else 0.2)
        assert in_place or error > 0
        imported.lease.release()


@pytest.mark.parametrize("byte", [0, 1])
async def test_a_damaged_payload_is_not_expanded(byte: int) -> None:
    """In a scale and in a value."""
    tap = Tap(flip(3, -1 - byte * 64, 0x10))
    async with kv_pair(layout=HOLDER, config=asking(INT8), wrap_handler=tap.wrap_handler) as pair:
        fill_with_numbers(pair)
        await expect_nothing_written(pair)
