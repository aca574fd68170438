"""Recorded decode steps against computed ones, with a recorder that computes again.

On a CPU, so values are real: padding, the sink and the addresses that stay are what is tested; that
CUDA repeats what it recorded is not (tests/gpu).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import torch_steps
from engine.attention import TiledAttention, choose_row_padding
from engine.attention_ways import Attention
from engine.batch_plan import plan_batch
from engine.decode_graphs import SIZES, DecodeGraphs
from engine.flashinfer_attention import FlashInferAttention
from engine.model_runner import ModelRunner
from engine.modelfiles.prepare import prepare_model
from engine.modelfiles.weights import map_weights
from engine.paged_attention import PagedAttention, plain_paged_decode
from engine.step import StepRow
from pdserve.errors import ConfigError
from pdserve.types import KVLayout, SamplingParams
from support.model_steps import StepDriver
from support.paged_stand_ins import FlashInferStandIn, RepeatingRecorder
from support.tiny_llama import write_tiny_llama

PROMPTS = ([5, 9, 200], list(range(3, 40)), [7], list(range(60, 160)), [11, 12])
SAMPLING = SamplingParams(max_tokens=12, ignore_eos=True)
CPU = torch.device("cpu")
MakeAttention = Callable[[str, KVLayout, int, torch.device], Attention]


def paged(_asked: str, layout: KVLayout, num_heads: int, device: torch.device) -> Attention:
    tiled = TiledAttention(num_heads, choose_row_padding(layout.head_dim, device))
    return PagedAttention("plain", plain_paged_decode, tiled)


def flashinfer(_asked: str, layout: KVLayout, num_heads: int, device: torch.device) -> Attention:
    return FlashInferAttention(layout, num_heads, device)


def make_runner(tmp_path: Path, dtype: str = "float32", **options: Any) -> ModelRunner:
    folder = write_tiny_llama(tmp_path / "model", seed=3)
    prepared = prepare_model(str(folder), dtype, cache_dir=tmp_path / "cache")
    return ModelRunner(
        prepared, map_weights(prepared), device="cpu", num_blocks=64, block_size=16,
        num_threads=1, **{"native": "off", **options},
    )  # fmt: skip


async def tokens_of(runner: ModelRunner) -> list[list[int]]:
    """Batches that shrink: one sequence after the other ends."""
    driver = StepDriver(runner)
    sequences = [driver.open(prompt, SAMPLING) for prompt in PROMPTS]
    for sequence in sequences:
        await driver.prefill(sequence, 64)
    for count in (5, 5, 4, 3, 3, 2, 1):
        await driver.decode(sequences[:count])
    for sequence in sequences:
        sequence.lease.release()
    return [sequence.token_ids for sequence in sequences]


@pytest.mark.parametrize(("way", "dtype"), [(paged, "float32"), (flashinfer, "bfloat16")])
async def test_recorded_steps_give_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: MakeAttention, dtype: str
) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", FlashInferStandIn())
    monkeypatch.setattr(torch_steps, "choose_attention", way)
    plain = make_runner(tmp_path, dtype)
    expected = await tokens_of(plain)
    await plain.close()
    recorder = RepeatingRecorder()
    monkeypatch.setattr(torch_steps, "open_recorder", lambda device: recorder)
    recorded = make_runner(tmp_path, dtype)
    assert recorded.kernels.endswith(", decode recorded to 256 rows")
    assert recorder.num_recorded == len(SIZES)
    assert await tokens_of(recorded) == expected
    assert recorder.num_repeated == 7 + 1  # and a prompt of one token
    await recorded.close()


async def test_padding_rows_write_only_the_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_steps, "choose_attention", paged)
    monkeypatch.setattr(torch_steps, "open_recorder", lambda device: RepeatingRecorder())
    runner = make_runner(tmp_path)
    cache = runner.buffers
    driver = StepDriver(runner)
    sequences = [driver.open(prompt, SAMPLING) for prompt in PROMPTS[:3]]
    for sequence in sequences:
        await driver.prefill(sequence, 64)
    before = cache.blocks.clone()
    positions = [sequence.num_computed for sequence in sequences]
    await driver.decode(sequences)
    changed = {
        (int(block), int(slot))
        for block, _, _, _, slot, _ in (cache.blocks != before).nonzero()
        if block != cache.sink_block_id
    }
    own = {
        (sequence.lease.block_ids[position // 16], position % 16)
        for sequence, position in zip(sequences, positions, strict=True)
    }
    assert changed == own
    assert not cache.blocks[cache.zero_block_id].any()
    assert cache.blocks[cache.sink_block_id].isfinite().all()
    for sequence in sequences:
        sequence.lease.release()
    await runner.close()


class Nothing:
    """Stands in for a model and its recorder where only the choice of steps matters."""

    def record(self, work: Any) -> Any:
        return self


@pytest.mark.parametrize(
    ("rows", "fits"),
    [
        ([(20, 1, True), (300, 1, True)], True),
        ([(20, 1, True)] * 5, False),  # the largest size is 4
        ([(20, 1, True), (0, 70, True)], False),
        ([(20, 1, True), (30, 1, False)], False),
    ],
)
async def test_which_steps_are_recorded(
    tmp_path: Path, rows: list[tuple[int, int, bool]], fits: bool
) -> None:
    runner = make_runner(tmp_path)
    cache, driver = runner.buffers, StepDriver(runner)
    attention = paged("", runner.layout, 4, CPU)
    nothing: Any = Nothing()
    graphs = DecodeGraphs(nothing, nothing, attention, cache, num_positions=512, sizes=(1, 4))
    step = [
        StepRow(driver.open(range(start + count), SAMPLING), start, count, samples)
        for start, count, samples in rows
    ]
    assert graphs.fits(plan_batch(step, runner.layout, cache.zero_block_id)) is fits
    for row in step:
        row.sequence.lease.release()
    await runner.close()


async def test_attention_that_cannot_be_recorded_is_not(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    nothing: Any = Nothing()
    tiled = TiledAttention(4, choose_row_padding(16, CPU))
    graphs = DecodeGraphs(nothing, nothing, tiled, runner.buffers, num_positions=512)
    assert graphs.sizes == ()
    await runner.close()


@pytest.mark.parametrize("native", ["auto", "off"])
def test_kernels_of_a_gpu_are_refused_on_a_cpu(tmp_path: Path, native: str) -> None:
    """And not passed over, because the C step has attention of its own."""
    with pytest.raises(
        ConfigError, match="^attention: triton: the kernels run on CUDA, not on cpu"
    ):
        make_runner(tmp_path, native=native, attention="triton")
