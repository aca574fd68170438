"""The simulated engine takes the time a fitted cost says, and ships KV of the shape it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.block_pool import BlockPool
from engine.build import build_runner, prepare, simulated_cost
from engine.config import EngineConfig
from engine.sequence import Sequence
from engine.simulated_runner import SimulatedRunner, simulated_token, step_seconds
from engine.step import StepRow
from pdserve.clock import ManualClock
from pdserve.errors import ConfigError, EngineFailure
from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.types import SamplingParams
from support.fake_engine import generate, make_attempt

COST = StepCost(PrefillCost(0.001, 1e-5, 1e-8), DecodeCost(0.002, 1e-4, 1e-7))


def runner_of(config: EngineConfig, clock: ManualClock | None = None) -> SimulatedRunner:
    runner = build_runner(config, prepare(config), clock or ManualClock(0.0))
    assert isinstance(runner, SimulatedRunner)
    return runner


def row(pool: BlockPool, num_prompt: int, start: int, num_tokens: int) -> StepRow:
    lease = pool.lease(8)
    assert lease is not None
    sequence = Sequence(make_attempt(list(range(num_prompt))), lease)
    while len(sequence.token_ids) < start + num_tokens:
        sequence.append(5)
    lease.release()  # the simulated engine touches no block
    return StepRow(sequence, start, num_tokens, samples=True)


def test_a_step_costs_the_sum_of_its_prompts_and_its_decode_rows() -> None:
    pool = BlockPool(64)
    chunk = row(pool, 100, 32, 64)
    decodes = [row(pool, 10, 12, 1), row(pool, 20, 20, 1)]
    prompt_s, decode_s = COST.prefill.seconds(32, 96), COST.decode.seconds(2, 13 + 21)
    assert step_seconds(COST, [chunk]) == prompt_s
    assert step_seconds(COST, decodes) == decode_s
    assert step_seconds(COST, [chunk, *decodes]) == pytest.approx(prompt_s + decode_s)
    assert step_seconds(COST, []) == 0


async def test_a_step_ends_when_its_time_is_over_and_not_before() -> None:
    clock = ManualClock(0.0)
    config = EngineConfig(engine="simulated", sim_step_ms=3.0)
    runner = runner_of(config, clock)
    pool = BlockPool(64)
    running = asyncio.create_task(runner.run([row(pool, 4, 4, 1)]))
    await asyncio.sleep(0)
    with pytest.raises(EngineFailure, match="another one runs"):
        await runner.run([])
    clock.advance(0.0029)
    await asyncio.sleep(0)
    assert not running.done()
    clock.advance(0.0002)
    (sampled,) = await running
    assert sampled is not None
    assert sampled.token_id == simulated_token(1)


async def test_an_answer_goes_on_where_another_attempt_left_it() -> None:
    runner = runner_of(EngineConfig(engine="simulated"))
    pool = BlockPool(runner.buffers.num_blocks)
    sampling = SamplingParams(max_tokens=30, num_logprobs=1)
    whole = await generate(
        runner, pool, make_attempt([1, 2, 3], sampling=sampling), chunk_tokens=16
    )
    assert whole == [simulated_token(index) for index in range(30)]
    later = make_attempt([1, 2, 3], sampling=sampling, forced_ids=whole[:7])
    assert await generate(runner, pool, later, chunk_tokens=16) == whole[7:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kv_has_the_shape_asked_for(dtype: str, tmp_path: Path) -> None:
    none = runner_of(EngineConfig(engine="simulated", dtype=dtype))
    assert none.layout.token_bytes == 8
    shape = runner_of(EngineConfig(engine="simulated", dtype=dtype, sim_shape="smollm2-135m"))
    assert shape.layout.token_bytes == 30 * 2 * 3 * 64 * (4 if dtype == "float32" else 2)
    with pytest.raises(ConfigError, match="sim_shape"):
        runner_of(EngineConfig(engine="simulated", sim_shape=str(tmp_path)))


def test_options_carry_their_units() -> None:
    config = EngineConfig(
        engine="simulated", sim_chunk_ms=1, sim_prompt_token_us=10, sim_squared_token_ns=10,
        sim_step_ms=2, sim_sequence_us=100, sim_kv_token_ns=100,
    )  # fmt: skip
    found, wanted = simulated_cost(config), COST
    assert found.prefill.coefficients == pytest.approx(wanted.prefill.coefficients)
    assert found.decode.coefficients == pytest.approx(wanted.decode.coefficients)
