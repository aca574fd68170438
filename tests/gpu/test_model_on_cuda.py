"""A CUDA device against the CPU on a tiny model whose logits lie far apart: the same tokens, and
logprobs that are close. Bits are not promised to be equal.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.model_runner import build_model_runner
from engine.modelfiles.prepare import prepare_model
from engine.step import StepRow
from pdserve.types import SamplingParams
from support.model_steps import StepDriver
from support.tiny_llama import write_tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PROMPTS = [list(range(3, 3 + length)) for length in (1, 16, 150)]


async def generate_together(device: str, folder: Path, cache_dir: Path) -> list[list[int]]:
    prepared = prepare_model(str(folder), "float32", cache_dir=cache_dir)
    config = EngineConfig(device=device, kv_memory_mib=16.0, threads=1)
    runner = build_model_runner(config, prepared)
    try:
        driver = StepDriver(runner)
        sampling = SamplingParams(max_tokens=8)
        sequences = [driver.open(prompt, sampling) for prompt in PROMPTS]
        await driver.step([StepRow(s, 0, s.num_uncomputed, samples=True) for s in sequences])
        for _ in range(1, sampling.max_tokens):
            await driver.decode(sequences)
        for sequence in sequences:
            sequence.lease.release()
        return [sequence.token_ids for sequence in sequences]
    finally:
        await runner.close()


async def test_greedy_tokens_equal_the_cpus(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model", seed=1)
    on_cpu = await generate_together("cpu", folder, tmp_path)
    assert await generate_together("cuda", folder, tmp_path) == on_cpu


async def logprobs_of(device: str, folder: Path, cache_dir: Path) -> list[float]:
    prepared = prepare_model(str(folder), "float32", cache_dir=cache_dir)
    runner = build_model_runner(EngineConfig(device=device, kv_memory_mib=16.0), prepared)
    try:
        sampling = SamplingParams(max_tokens=8, num_logprobs=3)
        found = [await StepDriver(runner).generate(prompt, sampling) for prompt in PROMPTS]
        chosen = [token.logprobs for tokens in found for token in tokens]
        return [logprobs.chosen for logprobs in chosen if logprobs is not None]
    finally:
        await runner.close()


async def test_logprobs_are_close_to_the_cpus(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model", seed=1)
    on_cpu = await logprobs_of("cpu", folder, tmp_path)
    assert len(on_cpu) == 8 * len(PROMPTS)
    assert await logprobs_of("cuda", folder, tmp_path) == pytest.approx(on_cpu, abs=1e-3)


async def test_the_pool_is_sized_by_free_memory_and_the_device_is_named(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model", seed=1)
    prepared = prepare_model(str(folder), "float32", cache_dir=tmp_path)
    runner = build_model_runner(EngineConfig(device="cuda"), prepared)
    try:
        assert runner.device.startswith("cuda:0, ")
        assert runner.buffers.num_blocks >= runner.layout.num_blocks(prepared.config.max_positions)
    finally:
        await runner.close()
