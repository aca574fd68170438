"""KV in 8 bits a value: how far off it may be, against a plain loop over the values."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.coding import CODINGS, FP8, INT8, coded_block_bytes
from kvtransfer.compress import LARGEST, LEAST_PEAK, compress, expand
from pdserve.types import KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_size=4, dtype="float32")
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-10}
each_coding = pytest.mark.parametrize("coding", CODINGS)


def blocks_of(values: torch.Tensor, layout: KVLayout) -> list[memoryview]:
    """[block, row, token, dim] as blocks of the layout."""
    stored = values.to(getattr(torch, layout.dtype)).flatten(1).contiguous().view(torch.uint8)
    return [memoryview(bytearray(block.numpy().tobytes())) for block in stored]


def empty(layout: KVLayout, num_blocks: int) -> list[memoryview]:
    return [memoryview(bytearray(layout.block_bytes)) for _ in range(num_blocks)]


def values_of(blocks: list[memoryview], layout: KVLayout) -> torch.Tensor:
    dtype = getattr(torch, layout.dtype)
    rows = (len(blocks), -1, layout.block_size, layout.head_dim)
    return torch.cat([torch.frombuffer(each, dtype=dtype) for each in blocks]).view(rows).float()


def coded_pieces(payload: memoryview, layout: KVLayout, coding: str) -> list[memoryview]:
    size = coded_block_bytes(layout, coding)
    return [payload[start : start + size] for start in range(0, len(payload), size)]


def there_and_back(
    blocks: list[memoryview], layout: KVLayout, coding: str, num_tokens: int
) -> torch.Tensor:
    payload = compress(layout, coding, blocks, num_tokens)
    out = empty(layout, len(blocks))
    expand(layout, coding, coded_pieces(payload, layout, coding), out)
    return values_of(out, layout)


def random_values(seed: int, spread: float, num_blocks: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = LAYOUT.num_layers * 2 * LAYOUT.num_kv_heads
    shape = (num_blocks, rows, LAYOUT.block_size, LAYOUT.head_dim)
    magnitudes = torch.randn(shape, generator=generator) * spread
    return torch.randn(shape, generator=generator) * torch.exp2(magnitudes)


@given(
    st.integers(0, 10**6),
    st.floats(0, 6),
    st.sampled_from(sorted(ROUNDING)),
    st.sampled_from(CODINGS),
)
def test_no_value_is_further_off_than_told(
    seed: int, spread: float, dtype: str, coding: str
) -> None:
    layout = replace(LAYOUT, dtype=dtype)
    blocks = blocks_of(random_values(seed, spread).clamp(-60000, 60000), layout)
    held = values_of(blocks, layout)
    came = there_and_back(blocks, layout, coding, 3 * layout.block_size)
    over = (-1,) if coding == INT8 else (-2, -1)
    scale = held.abs().amax(over, keepdim=True) / LARGEST[coding]
    if coding == INT8:
        bound = (scale / 2).expand_as(held)
    else:
        bound = torch.maximum(held.abs() * 2.0**-4, scale * 2.0**-10)
    bound = bound * (1 + 2.0**-18) + came.abs() * (ROUNDING[dtype] + 2.0**-20) + 2.0**-24
    assert bool(((came - held).abs() <= bound).all())


@each_coding
@given(seed=st.integers(0, 10**6))
def test_a_payload_is_what_the_plain_loop_writes(coding: str, seed: int) -> None:
    """One value after another, by its address; the scales of the vectorised way."""
    values = random_values(seed, 3.0, 1)
    blocks = blocks_of(values, LAYOUT)
    payload = compress(LAYOUT, coding, blocks, LAYOUT.block_size)
    flat = struct.unpack(f"<{LAYOUT.block_bytes // 4}f", blocks[0])
    covers = LAYOUT.head_dim * (1 if coding == INT8 else LAYOUT.block_size)
    num_scales = len(flat) // covers
    scales = struct.unpack(f"<{num_scales}f", payload[: 4 * num_scales])
    for index, value in enumerate(flat):
        first = index // covers * covers
        scale = scales[index // covers]
        peak = max(abs(each) for each in flat[first : first + covers])
        assert scale == pytest.approx(peak / LARGEST[coding], rel=1e-6)
        byte = payload[4 * num_scales + index : 4 * num_scales + index + 1]
        got = float(struct.unpack("b", byte)[0]) if coding == INT8 else e4m3(byte[0])
        exact = value / scale
        step = 1.0 if coding == INT8 else max(2.0**-9, 2.0 ** (_exponent(exact) - 3))
        assert abs(got - exact) <= step / 2 * (1 + 1e-4)


def _exponent(value: float) -> int:
    return torch.frexp(torch.tensor(value)).exponent.item() - 1  # type: ignore[return-value]


def e4m3(byte: int) -> float:
    """OCP 8-bit float: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


@each_coding
def test_what_lies_beyond_the_last_token_changes_nothing_and_is_not_sent(coding: str) -> None:
    values = random_values(1, 1.0)
    noisy = values.clone()
    noisy[-1, :, 2:] = float("nan")
    held = there_and_back(blocks_of(values, LAYOUT), LAYOUT, coding, 10)
    came = there_and_back(blocks_of(noisy, LAYOUT), LAYOUT, coding, 10)
    assert torch.equal(came, held)
    assert bool((came[-1, :, 2:] == 0).all())


@each_coding
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1.9e-43, LEAST_PEAK / 2, 3e38])
def test_magnitudes_at_the_ends_of_float32_stay_numbers(coding: str, value: float) -> None:
    came = there_and_back(
        blocks_of(torch.full((1, 8, 4, 8), value), LAYOUT), LAYOUT, coding, LAYOUT.block_size
    )
    assert bool(((came - value).abs() <= value * 1e-6 + LEAST_PEAK).all())


@each_coding
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_does_not_become_one(coding: str, value: float) -> None:
    values = random_values(2, 1.0, 1)
    values[0, 3, 1, 5] = value
    came = there_and_back(blocks_of(values, LAYOUT), LAYOUT, coding, LAYOUT.block_size)
    assert not bool(came[0, 3, 1].isfinite().any())
    assert bool(came[0, 2].isfinite().all())


@pytest.mark.parametrize(("coding", "most"), [(INT8, 0.54), (FP8, 0.51)])
def test_bytes_on_the_wire_are_about_half_of_bfloat16(coding: str, most: float) -> None:
    layout = KVLayout(num_layers=30, num_kv_heads=3, head_dim=64, block_size=16, dtype="bfloat16")
    assert coded_block_bytes(layout, coding) <= most * layout.block_bytes
