"""What a runner says of itself, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.attention import RowPadding, TiledAttention
from engine.batch_plan import plan_batch
from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.kv_cache import KvCache
from engine.linear import LinearKernel, choose_kernel, cpu_kernels, rows_are_independent
from engine.model import LlamaModel
from engine.model_runner import ModelRunner, build_model_runner, parse_cpus
from engine.modelfiles.weights import map_weights
from engine.step import StepRow
from pdserve.errors import ConfigError
from pdserve.prepared import PreparedModel
from pdserve.types import KVLayout, SamplingParams
from support.model_steps import StepDriver, open_sequence

MakeRunner = Callable[..., ModelRunner]
PrepareTiny = Callable[..., PreparedModel]


@pytest.mark.parametrize(("native", "kernels"), [("off", "linear "), ("on", "native avx")])
async def test_built_from_options(prepare_tiny: PrepareTiny, native: str, kernels: str) -> None:
    prepared = prepare_tiny()
    core = min(os.sched_getaffinity(0))
    config = EngineConfig(kv_memory_mib=1.0, cpus=str(core), native=native)
    runner = build_model_runner(config, prepared)
    try:
        assert runner.layout == KVLayout(2, 2, 16, 16, "float32")
        assert runner.buffers.num_blocks * runner.layout.block_bytes == 2**20
        assert runner.vocab_size == prepared.config.vocab_size
        assert runner.eos_token_ids == (2,)
        assert runner.device.startswith(f"cpu, 1 thread, {kernels}")
        tokens = await StepDriver(runner).generate([1, 5, 9], SamplingParams(max_tokens=4))
        assert len(tokens) == 4
    finally:
        await runner.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine")]


@pytest.mark.parametrize("native", ["off", "on"])
async def test_threads_that_compute_stand_back_and_no_others(
    prepare_tiny: PrepareTiny, native: str
) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    before = set(os.listdir("/proc/self/task"))
    config = EngineConfig(kv_memory_mib=1.0, threads=2, native=native)
    runner = build_model_runner(config, prepare_tiny(), nice=3)
    try:
        await StepDriver(runner).generate([1, 5, 9], SamplingParams(max_tokens=2))
        started = {int(each) for each in set(os.listdir("/proc/self/task")) - before}
        assert len(started) > 1
        found = {os.getpriority(os.PRIO_PROCESS, each) for each in started}
        assert found == {min(own + 3, 19)}
        assert os.getpriority(os.PRIO_PROCESS, 0) == own
    finally:
        await runner.close()


async def test_pool_is_not_larger_than_64_contexts(prepare_tiny: PrepareTiny) -> None:
    config = EngineConfig(max_model_len=100, block_size=16, threads=1)
    runner = build_model_runner(config, prepare_tiny())
    assert runner.buffers.num_blocks == 64 * 7
    await runner.close()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kv_memory_mib": 0.001}, "kv_memory_mib: 0.001 MiB hold no block of 8192 bytes"),
        ({"device": "tpu"}, "device: 'tpu'"),
        ({"device": "cpu:1"}, "device: 'cpu:1'"),
        ({"cpus": "0,x"}, "cpus: '0,x'"),
        ({"cpus": "100000"}, "cpus: this process may not use"),
    ],
)
def test_options_that_cannot_be_met(
    prepare_tiny: PrepareTiny, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_model_runner(EngineConfig(**changes), prepare_tiny())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_absent_gpu_is_refused_by_name(prepare_tiny: PrepareTiny) -> None:
    with pytest.raises(ConfigError, match="device: 'cuda:1' is not here: 0 GPUs"):
        build_model_runner(EngineConfig(device="cuda:1"), prepare_tiny())


def test_cores_are_parsed() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert parse_cpus("") == ()
    assert parse_cpus(f"{cores[0]}-{cores[0]},{cores[-1]}") == tuple(sorted({cores[0], cores[-1]}))


async def test_weights_that_do_not_fit_end_the_thread(prepare_tiny: PrepareTiny) -> None:
    prepared = prepare_tiny()
    weights = map_weights(prepared)
    del weights["norm"]
    with pytest.raises(KeyError, match="norm"):
        ModelRunner(
            prepared, weights, device="cpu", num_blocks=4, block_size=16, num_threads=1
        )  # fmt: skip
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine")]


def test_a_kernel_that_depends_on_the_batch_is_found_out() -> None:
    """Padding must be needed for the check to be worth anything: fake a kernel that varies."""

    def pack(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x @ weight.t() + (1e-6 if len(x) < 4 else 0.0)

    weight = torch.randn(64, 32)
    assert not rows_are_independent(LinearKernel("varies", torch.float32, pack), weight)
    chosen = choose_kernel([weight], torch.device("cpu"))
    assert rows_are_independent(chosen, weight)


@pytest.mark.parametrize("kernel", cpu_kernels(torch.float32), ids=lambda kernel: kernel.name)
def test_every_kernel_multiplies(kernel: LinearKernel) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(100, 40, generator=generator)
    for num_rows in (1, 7, 64, 65):
        x = torch.randn(num_rows, 40, generator=generator)
        expected = x.double() @ weight.double().t()
        torch.testing.assert_close(kernel.pack(weight)(x), expected.float(), atol=1e-4, rtol=1e-4)
    assert rows_are_independent(kernel, weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_stays_on_its_device(prepare_tiny: PrepareTiny, dtype: str) -> None:
    """Every operation on torch's device without data: one that mixes in the CPU raises."""
    prepared = prepare_tiny(dtype)
    layout = KVLayout(2, 2, 16, 16, dtype)
    rows = _rows(layout)
    device = torch.device("meta")
    weights = map_weights(prepared)
    kernel = choose_kernel([weights["embed"]], device)
    with torch.inference_mode():
        model = LlamaModel(
            prepared.config, weights, device=device, kernel=kernel,
            attention=TiledAttention(4, RowPadding(8)), num_positions=1024,
        )  # fmt: skip
        cache = KvCache(layout, 64, device)
        logits = model.forward(plan_batch(rows, layout, cache.zero_block_id), cache)
    assert logits.shape == (3, prepared.config.vocab_size)
    assert logits.device == device
    assert logits.dtype == torch.float32
    for row in rows:
        row.sequence.lease.release()


def _rows(layout: KVLayout) -> list[StepRow]:
    """Two decode rows of unlike length, a chunk that samples and one that does not."""
    pool = BlockPool(64)
    rows = []
    for start, count, samples in ((20, 1, True), (300, 1, True), (0, 70, True), (64, 64, False)):
        sequence = open_sequence(pool, layout, range(start + count))
        rows.append(StepRow(sequence, start, count, samples))
    return rows
