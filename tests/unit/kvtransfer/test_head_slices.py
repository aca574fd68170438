"""Slices of the heads on several holders are one reader's KV, or are refused by name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.block_pool import BlockPool
from kvtransfer.block_bytes import carried
from kvtransfer.codec import decode, encode
from kvtransfer.converted_blocks import Arriving, place_converted
from kvtransfer.digest import payload_checksum
from kvtransfer.head_slices import HeadShare, head_shares, split_heads
from kvtransfer.messages import Frame
from pdserve.errors import LayoutMismatch
from pdserve.types import KVLayout, TicketId
from support.kv_pair import ByteBuffers

MODEL = KVLayout(num_layers=2, num_kv_heads=6, head_dim=2, block_size=4, dtype="float32")
NUM_TOKENS = 13
DTYPES = ("float32", "bfloat16", "float16")


def as_blocks(layout: KVLayout, kv: torch.Tensor) -> list[bytes]:
    """The plain copy: ``kv`` is [layer, k or v, head, token, dim] of the whole model, float32."""
    heads = slice(layout.first_kv_head, layout.first_kv_head + layout.num_kv_heads)
    padded = torch.zeros(*kv.shape[:3], layout.num_blocks(NUM_TOKENS) * layout.block_size, 2)
    padded[:, :, :, :NUM_TOKENS] = kv
    stored = padded[:, :, heads].to(getattr(torch, layout.dtype))
    blocks = stored.split(layout.block_size, dim=3)
    return [block.contiguous().view(torch.uint8).numpy().tobytes() for block in blocks]


def frames(layout: KVLayout, blocks: Sequence[bytes], draw: random.Random) -> list[Frame]:
    """What a holder sends, in runs of blocks drawn at random, as a reader receives it."""
    found: list[Frame] = []
    start = 0
    while start < len(blocks):
        stop = draw.randint(start + 1, len(blocks))
        payload = memoryview(b"".join(blocks[start:stop]))
        first = start * layout.block_size
        sent = Frame(
            TicketId("t"), 1, len(found), first,
            min(NUM_TOKENS, stop * layout.block_size) - first, 0, layout.num_layers,
            layout.first_kv_head, layout.num_kv_heads, layout.dtype,
            payload_checksum((payload,)), (payload,),
        )  # fmt: skip
        received = decode(encode(sent))
        assert isinstance(received, Frame)
        found.append(received)
        start = stop
    return found


async def joined(
    own: KVLayout, shares: Sequence[HeadShare], sent: Sequence[list[Frame]],
    holders: Sequence[KVLayout], draw: random.Random,
) -> list[bytes]:  # fmt: skip
    """The reader's blocks after the frames of all holders came, in any order among them."""
    buffers = ByteBuffers(own, own.num_blocks(NUM_TOKENS), seed=3)
    for block_id in range(buffers.num_blocks):
        buffers.view(block_id)[:] = bytes(own.block_bytes)
    pool = BlockPool(buffers.num_blocks)
    lease = pool.lease(buffers.num_blocks)
    assert lease is not None
    turns = [share.holder for share in shares for _ in sent[share.holder]]
    draw.shuffle(turns)
    coming = [iter(each) for each in sent]
    for holder in turns:
        frame = next(coming[holder])
        assert (frame.first_head, frame.num_heads) == (
            holders[holder].first_kv_head, holders[holder].num_kv_heads,
        )  # fmt: skip
        await place_converted(
            buffers, lease, Arriving(holders[holder]), frame, 0, carried(frame).put, read_back=False
        )
    found = buffers.contents(lease)
    lease.release()
    return found


@st.composite
def groupings(draw: st.DrawFn) -> list[range]:
    """Cuts of the model's heads into consecutive groups."""
    cuts = sorted(draw(st.sets(st.integers(1, MODEL.num_kv_heads - 1))))
    return [range(*pair) for pair in zip([0, *cuts], [*cuts, MODEL.num_kv_heads], strict=True)]


def unlike(layout: KVLayout, draw: random.Random) -> KVLayout:
    return replace(layout, block_size=draw.choice([1, 2, 3, 4, 5, 16]), dtype=draw.choice(DTYPES))


@given(groupings(), groupings(), st.integers(0, 1 << 32))
def test_any_grouping_read_by_any_other_is_the_plain_copy(
    there: list[range], here: list[range], seed: int
) -> None:
    """Finer, coarser and shifted groups; block sizes and dtypes of every holder its own."""
    draw = random.Random(seed)
    kv = 3 * torch.randn(2, 2, 6, NUM_TOKENS, 2, generator=torch.Generator().manual_seed(seed))
    holders = [unlike(layout, draw) for layout in split_heads(MODEL, there)]
    draw.shuffle(holders)
    sent = [frames(layout, as_blocks(layout, kv), draw) for layout in holders]
    for layout in split_heads(MODEL, here):
        own = unlike(layout, draw)
        shares = head_shares(own, holders)
        rounded = kv.clone()  # each head as its holder keeps it
        for holder in holders:
            heads = slice(holder.first_kv_head, holder.first_kv_head + holder.num_kv_heads)
            rounded[:, :, heads] = kv[:, :, heads].to(getattr(torch, holder.dtype)).float()
        found = asyncio.run(joined(own, shares, sent, holders, draw))
        assert found == as_blocks(own, rounded)


@given(groupings(), groupings())
def test_shares_are_each_head_once_and_what_a_holder_may_be_asked_for(
    there: list[range], here: list[range]
) -> None:
    holders = split_heads(MODEL, there)
    for own in split_heads(MODEL, here):
        shares = head_shares(own, holders)
        heads = [
            head
            for share in shares
            for head in range(
                share.layout.first_kv_head,
                share.layout.first_kv_head + share.layout.num_kv_heads,
            )
        ]
        assert heads == list(range(own.first_kv_head, own.first_kv_head + own.num_kv_heads))
        for share in shares:
            assert holders[share.holder].first_obstacle(share.layout) is None


def slices(*groups: tuple[int, int]) -> tuple[KVLayout, ...]:
    return split_heads(MODEL, [range(*group) for group in groups])


@pytest.mark.parametrize(
    ("holders", "words"),
    [
        (slices(), "heads: 1 to 4 with no holder"),
        (slices((2, 6)), "heads: 1 with no holder"),
        (slices((0, 2), (3, 6)), "heads: 2 with no holder"),
        (slices((3, 4), (0, 3)), "heads: 4 with no holder"),
        (slices((0, 3), (2, 6)), "heads: 2 with holders 0 and 1"),
        (slices((2, 5), (0, 6)), "heads: 2 to 4 with holders 1 and 0"),
        (slices((0, 6), (0, 6)), "heads: 1 to 4 with holders 0 and 1"),
        (
            (slices((0, 3))[0], replace(slices((3, 6))[0], num_layers=3)),
            "num_layers: holder 1 has 3, reader 2",
        ),
        ((replace(MODEL, head_dim=4),), "head_dim: holder 0 has 4, reader 2"),
    ],
)
def test_gaps_overlaps_and_other_shapes_are_refused_by_name(
    holders: tuple[KVLayout, ...], words: str
) -> None:
    """The reader wants heads 1 to 4."""
    (own,) = slices((1, 5))
    with pytest.raises(LayoutMismatch, match=f"^{words}$"):
        head_shares(own, holders)


def test_what_the_reader_does_not_want_may_overlap_or_lack() -> None:
    (own,) = slices((1, 3))
    holders = slices((2, 4), (4, 6), (0, 2), (4, 5))
    assert [share.holder for share in head_shares(own, holders)] == [2, 0]


@pytest.mark.parametrize("group", [range(6, 7), range(3, 3), range(0, 4, 2)])
def test_a_group_that_is_no_slice_is_refused(group: range) -> None:
    with pytest.raises(ValueError, match="no slice"):
        split_heads(MODEL, [group])
