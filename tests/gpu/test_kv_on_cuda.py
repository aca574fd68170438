"""KV in a GPU's memory: copied exactly, exported and imported, and the whole path on one GPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from engine.block_pool import BlockBuffers, BlockPool
from engine.build import build_runner
from engine.config import EngineConfig
from engine.kv_cache import KvCache
from engine.modelfiles.prepare import prepare_model
from engine.step import StepRow
from kvtransfer.config import TransferConfig
from kvtransfer.exporter import Exporter
from kvtransfer.importer import Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.transports.inproc import InprocNetwork
from pdserve.clock import MonotonicClock
from pdserve.types import KVLayout, SamplingParams, TicketId, TransferTicket, WorkerId
from support.fake_engine import generate, make_attempt
from support.kv_pair import FIRST
from support.model_steps import StepDriver
from support.tiny_llama import write_tiny_llama
from support.trio import Trio, TrioOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = "cuda"
LAYOUT = KVLayout(num_layers=30, num_kv_heads=3, head_dim=64, block_size=16, dtype="bfloat16")
NUM_BLOCKS = 40


def filled(device: str, seed: int) -> KvCache:
    cache = KvCache(LAYOUT, NUM_BLOCKS, torch.device(device))
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(cache.blocks[:NUM_BLOCKS].shape, generator=generator)
    cache.blocks[:NUM_BLOCKS] = values.to(torch.bfloat16).to(device)
    if device != "cpu":
        torch.cuda.synchronize()
    return cache


def contents(cache: KvCache, block_ids: tuple[int, ...]) -> list[bytes]:
    """By torch's own copy, not by the copier under test."""
    blocks = cache.blocks[list(block_ids)].cpu().view(torch.uint8)
    return [block.numpy().tobytes() for block in blocks]


async def test_copies_are_exact_and_staging_is_page_locked() -> None:
    source, target = filled(DEVICE, 1), filled(DEVICE, 2)
    assert source.copier is not None
    assert target.copier is not None
    staging = source.copier.staging(3 * LAYOUT.block_bytes)
    assert torch.frombuffer(staging, dtype=torch.uint8).is_pinned()
    untouched = contents(target, (0, 1, 2))
    await source.copier.read([7, 0, 39], staging)
    assert bytes(staging) == b"".join(contents(source, (7, 0, 39)))
    await target.copier.write([5, 39, 4], staging)
    assert contents(target, (5, 39, 4)) == contents(source, (7, 0, 39))
    assert contents(target, (0, 1, 2)) == untouched
    source.close()
    target.close()


async def test_a_step_without_samples_has_ended_when_run_returns(tmp_path: Path) -> None:
    """Read at once, on another stream, against the same blocks after everything has ended."""
    folder = write_tiny_llama(tmp_path / "model", seed=1)
    prepared = prepare_model(str(folder), "float32", cache_dir=tmp_path)
    runner = build_runner(
        EngineConfig(device=DEVICE, kv_memory_mib=64.0), prepared, MonotonicClock()
    )
    driver = StepDriver(runner)
    sequence = driver.open([i % 250 for i in range(900)], SamplingParams(max_tokens=4))
    copier = runner.buffers.copier
    assert copier is not None
    await driver.step([StepRow(sequence, 0, 800, samples=False)])
    block_ids = sequence.lease.block_ids[:50]
    found = copier.staging(50 * runner.layout.block_bytes)
    await copier.read(block_ids, found)
    torch.cuda.synchronize()
    again = copier.staging(50 * runner.layout.block_bytes)
    await copier.read(block_ids, again)
    assert found == again
    sequence.lease.release()
    await runner.close()


@pytest.mark.parametrize("read_back", [True, False])
@pytest.mark.parametrize(("holder", "reader"), [(DEVICE, "cpu"), ("cpu", DEVICE), (DEVICE, DEVICE)])
async def test_exported_and_imported(holder: str, reader: str, read_back: bool) -> None:
    source, target = filled(holder, 1), filled(reader, 2)
    held, taken = await transfer(source, target, TransferConfig(read_back=read_back), 500)
    assert contents(target, taken) == contents(source, held)
    source.close()
    target.close()


async def transfer(
    source: BlockBuffers, target: BlockBuffers, config: TransferConfig, num_tokens: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks read from and blocks filled."""
    clock, network = MonotonicClock(), InprocNetwork()
    exporter, listener = Exporter(source, clock, config), network.listener()
    endpoint = await listener.start(exporter.serve)
    dialers = {endpoint.transport: network.dialer()}
    importer = Importer(target, clock, config, WorkerId("d"), "b", dialers)
    ticket = TransferTicket(
        TicketId("t"), 1, WorkerId("p"), "a", (endpoint,), LAYOUT, num_tokens, 60.0
    )
    lease = BlockPool(NUM_BLOCKS).lease(LAYOUT.num_blocks(num_tokens))
    assert lease is not None
    room = BlockPool(NUM_BLOCKS).lease(NUM_BLOCKS)
    assert room is not None

    async def make_room(_num_tokens: int) -> object:
        return room

    export = exporter.offer(ticket, lease, num_tokens)
    export.advance(num_tokens)
    export.commit(FIRST)
    await importer.redeem(ticket, make_room, IntakeBudget(1 << 30))  # type: ignore[arg-type]
    held, taken = lease.block_ids, room.block_ids[: lease.num_blocks]
    await importer.close()
    await exporter.close()
    await listener.close()
    lease.release()
    room.release()
    return held, taken


@pytest.mark.parametrize(
    ("prefill", "decode"), [(DEVICE, DEVICE), (DEVICE, "cpu"), ("cpu", DEVICE)]
)
async def test_the_whole_path_on_one_gpu(tmp_path: Path, prefill: str, decode: str) -> None:
    """Greedy tokens of a model whose logits lie far apart, against the CPU's plain loop."""
    folder = write_tiny_llama(tmp_path / "model", seed=1)
    model = prepare_model(str(folder), "float32", cache_dir=tmp_path / "cache")
    engines = {
        device: EngineConfig(
            model=str(folder), device=device, threads=1, chunk_tokens=32, kv_memory_mib=16.0,
            max_model_len=512,
        )
        for device in {prefill, decode, "cpu"}
    }  # fmt: skip
    prompts = [list(range(3, 3 + length)) for length in (1, 16, 150)]
    sampling = SamplingParams(max_tokens=8)
    runner = build_runner(engines["cpu"], model, MonotonicClock())
    pool = BlockPool(runner.buffers.num_blocks)
    expected = [
        await generate(runner, pool, make_attempt(ids, sampling=sampling), chunk_tokens=32)
        for ids in prompts
    ]
    await runner.close()
    options = TrioOptions(
        kv="grpc", engine=engines["cpu"], prefill_engine=engines[prefill],
        decode_engine=engines[decode], model=model,
    )  # fmt: skip
    async with Trio(options) as trio:
        outcomes = await asyncio.gather(*(trio.generate(ids, sampling) for ids in prompts))
    assert [outcome.ids for outcome in outcomes] == expected
