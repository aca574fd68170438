"""KV of one layout in blocks of another: any grouping of heads, block sizes, dtypes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.convert import BlockRun, copy_tokens
from pdserve.types import KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=6, head_dim=2, block_size=4, dtype="float32")
NUM_TOKENS = 12


def run_of(layout: KVLayout, seed: int | None = None, num_tokens: int = NUM_TOKENS) -> BlockRun:
    """Blocks for so many tokens: zeros, or random values."""
    draw = random.Random(seed)
    pieces = []
    for _ in range(layout.num_blocks(num_tokens)):
        values = torch.zeros(layout.block_bytes // layout.dtype_bytes, dtype=torch.float32)
        if seed is not None:
            values = torch.tensor([draw.gauss(0, 3) for _ in range(len(values))])
        stored = values.to(getattr(torch, layout.dtype))
        pieces.append(memoryview(bytearray(stored.view(torch.uint8).numpy().tobytes())))
    return BlockRun(layout, pieces, 0)


def contents(run: BlockRun) -> list[bytes]:
    return [bytes(piece) for piece in run.pieces]


def plain(run: BlockRun, num_tokens: int = NUM_TOKENS) -> torch.Tensor:
    """[token, layer, k or v, head, dim] in float32, read one value at a time by its address."""
    layout = run.layout
    dtype = getattr(torch, layout.dtype)
    sizes = (num_tokens, layout.num_layers, 2, layout.num_kv_heads, layout.head_dim)
    found = torch.empty(sizes)
    for token in range(num_tokens):
        index, slot = divmod(token, layout.block_size)
        flat = torch.frombuffer(run.pieces[index], dtype=dtype)
        for layer in range(layout.num_layers):
            for part in range(2):
                for head in range(layout.num_kv_heads):
                    row = (layer * 2 + part) * layout.num_kv_heads + head
                    start = (row * layout.block_size + slot) * layout.head_dim
                    found[token, layer, part, head] = flat[start : start + layout.head_dim].float()
    return found


@st.composite
def groupings(draw: st.DrawFn) -> list[range]:
    """Cuts of the heads into consecutive groups."""
    cuts = sorted(draw(st.sets(st.integers(1, LAYOUT.num_kv_heads - 1))))
    return [range(*pair) for pair in zip([0, *cuts], [*cuts, LAYOUT.num_kv_heads], strict=True)]


def shard(heads: range, block_size: int) -> KVLayout:
    return replace(
        LAYOUT, first_kv_head=heads.start, num_kv_heads=len(heads), block_size=block_size
    )


def move(sources: Sequence[BlockRun], targets: Sequence[BlockRun]) -> None:
    """From every source to every target, as far as their heads meet."""
    for source in sources:
        for target in targets:
            copy_tokens(source, target, range(NUM_TOKENS))


@given(groupings(), groupings(), st.sampled_from([1, 2, 3, 4, 6, 12]), st.randoms())
def test_heads_split_regrouped_and_joined_are_what_they_were(
    first: list[range], second: list[range], block_size: int, draw: random.Random
) -> None:
    """As one worker with all heads, tensor-parallel ones of two widths, and one again would."""
    whole, joined = run_of(LAYOUT, seed=draw.randrange(100)), run_of(LAYOUT)
    split = [run_of(shard(heads, block_size)) for heads in first]
    regrouped = [run_of(shard(heads, 4)) for heads in second]
    move([whole], split)
    move(split, regrouped)
    move(regrouped, [joined])
    assert contents(joined) == contents(whole)
    for heads, run in zip(first, split, strict=True):
        assert torch.equal(plain(run), plain(whole)[:, :, :, heads.start : heads.stop])


@given(st.sampled_from([1, 2, 3, 4, 5, 8, 16]), st.data())
def test_pieces_of_a_sequence_in_any_cuts_make_the_whole(
    block_size: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, NUM_TOKENS - 1))))
    source = run_of(LAYOUT, seed=1)
    target = run_of(replace(LAYOUT, block_size=block_size))
    for start, stop in zip([0, *cuts], [*cuts, NUM_TOKENS], strict=True):
        copy_tokens(source, target, range(start, stop))
    assert torch.equal(plain(target), plain(source))


def test_what_is_not_copied_stays() -> None:
    source, target = run_of(LAYOUT, seed=1), run_of(replace(LAYOUT, block_size=5), seed=2)
    before = plain(target).clone()
    copy_tokens(source, target, range(3, 7))
    assert torch.equal(plain(target)[3:7], plain(source)[3:7])
    assert torch.equal(plain(target)[:3], before[:3])
    assert torch.equal(plain(target)[7:], before[7:])


def test_a_wider_dtype_keeps_every_value() -> None:
    for narrow in ("bfloat16", "float16"):
        source = run_of(replace(LAYOUT, dtype=narrow), seed=3)
        wide, back = run_of(LAYOUT), run_of(source.layout)
        copy_tokens(source, wide, range(NUM_TOKENS))
        copy_tokens(wide, back, range(NUM_TOKENS))
        assert torch.equal(plain(wide), plain(source))
        assert contents(back) == contents(source)


def test_a_narrower_dtype_rounds_to_nearest() -> None:
    source = run_of(LAYOUT, seed=4)
    for narrow, relative in (("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
        target = run_of(replace(LAYOUT, dtype=narrow))
        copy_tokens(source, target, range(NUM_TOKENS))
        error = (plain(target) - plain(source)).abs()
        assert bool((error <= relative * plain(source).abs() + 2.0**-24).all())
        assert bool((error > 0).any())
