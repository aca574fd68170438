"""The whole path where the KV of either role, or of both, lies in memory that can only be copied.

The fake engine's tokens are right only if every byte is; the tiny model goes through the copier
that a GPU uses. Each test ends with Trio's check: pools full, no leg, no ticket, no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from engine.block_pool import BlockCopier, BlockPool
from engine.build import build_runner
from engine.config import EngineConfig
from engine.fake_runner import fake_tokens
from engine.kv_cache import KvCache
from engine.modelfiles.prepare import prepare_model
from engine.staged_blocks import StagedBlocks
from engine.step import StepRunner
from kvtransfer.config import TransferConfig
from pdserve.clock import MonotonicClock
from pdserve.errors import EngineFailure, RequestCancelled, ServiceError
from pdserve.types import Role, SamplingParams
from support.fake_engine import generate, make_attempt
from support.staged import GatedCopier, StagedRunner
from support.tiny_llama import write_tiny_llama
from support.trio import Trio, TrioOptions, collect, eventually

SIDES = [(Role.PREFILL,), (Role.DECODE,), (Role.PREFILL, Role.DECODE)]
SAMPLING = SamplingParams(max_tokens=30, temperature=0.8, seed=5, ignore_eos=True)
PROMPT = [i % 256 for i in range(43)]


class Devices:
    """Puts engines of ``sides`` behind copiers. ``copiers``: of fake engines, latest by role."""

    def __init__(self, sides: Collection[Role]) -> None:
        self._sides = sides
        self.copiers: dict[Role, GatedCopier] = {}
        self.threads: list[StagedBlocks] = []

    def wrap(self, role: Role, runner: StepRunner) -> StepRunner:
        if role not in self._sides:
            return runner
        return StagedRunner(runner, self._copier(role, runner))

    def _copier(self, role: Role, runner: StepRunner) -> BlockCopier:
        if isinstance(runner.buffers, KvCache):
            self.threads.append(StagedBlocks(runner.buffers.blocks, runner.buffers.num_blocks))
            return self.threads[-1]
        self.copiers[role] = GatedCopier(runner.buffers)
        return self.copiers[role]

    def close(self) -> None:
        for thread in self.threads:
            thread.close()


@pytest.mark.parametrize("kv", ["inproc", "grpc"])
@pytest.mark.parametrize("sides", SIDES, ids="+".join)
async def test_thirty_two_streams_have_the_oracles_tokens(sides: Collection[Role], kv: str) -> None:
    devices = Devices(sides)
    async with Trio(TrioOptions(kv=kv, wrap_runner=devices.wrap)) as trio:
        prompts = [PROMPT[: 1 + i] for i in range(32)]
        outcomes = await asyncio.gather(*(trio.generate(ids, SAMPLING) for ids in prompts))
    assert [outcome.ids for outcome in outcomes] == [
        fake_tokens(ids, SAMPLING, 30) for ids in prompts
    ]
    for role in sides:
        assert devices.copiers[role].num_reads > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sides", SIDES, ids="+".join)
async def test_the_tiny_model_has_the_tokens_of_one_plain_loop(
    tmp_path: Path, sides: Collection[Role], dtype: str
) -> None:
    folder = write_tiny_llama(tmp_path / "model", seed=5)
    model = prepare_model(str(folder), dtype, cache_dir=tmp_path / "cache")
    engine = EngineConfig(
        model=str(folder), dtype=dtype, threads=1, chunk_tokens=32, kv_memory_mib=8.0,
        max_model_len=512,
    )  # fmt: skip
    prompts = [[(length * 17 + i * 29) % 250 for i in range(length)] for length in (1, 16, 101)]
    runner = build_runner(engine, model, MonotonicClock())
    pool = BlockPool(runner.buffers.num_blocks)
    expected = [
        await generate(runner, pool, make_attempt(ids, sampling=SAMPLING), chunk_tokens=32,
                       max_model_len=512)
        for ids in prompts
    ]  # fmt: skip
    await runner.close()
    devices = Devices(sides)
    async with Trio(TrioOptions(engine=engine, model=model, wrap_runner=devices.wrap)) as trio:
        outcomes = await asyncio.gather(*(trio.generate(ids, SAMPLING) for ids in prompts))
    devices.close()
    assert [outcome.ids for outcome in outcomes] == expected


async def test_parking_recomputes_and_changes_no_token() -> None:
    """Asked to copy: on a device the KV of a parked sequence is computed again all the same."""
    devices = Devices((Role.DECODE,))
    options = TrioOptions(wrap_runner=devices.wrap)
    block_mib = 2 * 2 * 1 * 8 * 4 * options.engine.block_size / 2**20
    small = replace(options.engine, kv_memory_mib=40 * block_mib, fake_decode_ms=0.5)
    long = replace(SAMPLING, max_tokens=100)
    async with Trio(replace(options, decode_engine=small)) as trio:
        outcomes = await asyncio.gather(*(trio.generate(PROMPT[: 9 + i], long) for i in range(16)))
        assert trio.workers["d0"].app.worker.num_parkings > 0  # type: ignore[union-attr]
    for i, outcome in enumerate(outcomes):
        assert outcome.ids == fake_tokens(PROMPT[: 9 + i], long, 100)


@pytest.mark.parametrize(
    ("role", "gate"),
    [(Role.PREFILL, "read_gate"), (Role.DECODE, "write_gate"), (Role.DECODE, "read_gate")],
)
async def test_a_cancel_during_a_copy_holds_the_blocks_until_it_ends(role: Role, gate: str) -> None:
    devices = Devices((role,))
    async with Trio(TrioOptions(wrap_runner=devices.wrap)) as trio:
        copier = devices.copiers[role]
        held: asyncio.Event = getattr(copier, gate)
        held.clear()
        stream = trio.start(PROMPT, SAMPLING)
        await eventually(lambda: copier.num_running == 1)
        stream.cancel("the client left")
        with pytest.raises(RequestCancelled):
            await collect(stream)
        name = "p0" if role is Role.PREFILL else "d0"
        await eventually(lambda: trio.router.status().num_in_flight == 0)
        pool = trio.workers[name].app.pool
        assert pool.num_free < pool.num_blocks
        held.set()
        await trio.assert_settled()
        assert (await trio.generate(PROMPT, SAMPLING)).ids == fake_tokens(PROMPT, SAMPLING, 30)


async def test_a_byte_lost_on_the_way_into_a_device_is_read_again() -> None:
    devices = Devices((Role.DECODE,))
    transfer = TransferConfig(max_frame_bytes=1)
    async with Trio(TrioOptions(transfer=transfer, wrap_runner=devices.wrap)) as trio:
        copier = devices.copiers[Role.DECODE]
        copier.damaged = True
        stream = trio.start(PROMPT, SAMPLING)
        await eventually(lambda: copier.num_reads > 0)
        copier.damaged = False
        assert (await collect(stream)).ids == fake_tokens(PROMPT, SAMPLING, 30)


async def test_a_device_that_cannot_copy_fails_the_request_and_leaks_nothing() -> None:
    devices = Devices((Role.DECODE,))
    async with Trio(TrioOptions(wrap_runner=devices.wrap)) as trio:
        copier = devices.copiers[Role.DECODE]
        copier.fail_with = EngineFailure("copy of blocks: broken")
        with pytest.raises(ServiceError):
            await trio.generate(PROMPT, SAMPLING)
        await trio.assert_settled()
        copier.fail_with = None
        assert (await trio.generate(PROMPT, SAMPLING)).ids == fake_tokens(PROMPT, SAMPLING, 30)
