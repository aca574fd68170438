"""A row's bits depend on neither its batch, the chunk cuts, the block size nor the threads.

Compared are the KV, byte by byte, and the sampled tokens with logprobs of the best ten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from engine.model_runner import ModelRunner
from engine.sequence import Sequence
from engine.step import SampledToken, StepRow
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from support.model_steps import StepDriver

MakeRunner = Callable[..., ModelRunner]
PrepareTiny = Callable[..., PreparedModel]

SAMPLING = SamplingParams(max_tokens=6, temperature=0.8, seed=11, num_logprobs=10)
SHAPES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "one kv head, odd sizes": {
        "num_heads": 3, "num_kv_heads": 1, "hidden": 72, "head_dim": 48, "intermediate": 100,
        "vocab": 331,
    },
    # MKL splits a product of 24 columns among three threads so that sums change
    "one kv head of 24": {"num_heads": 3, "num_kv_heads": 1, "hidden": 72, "head_dim": 24},
    "no gqa, untied": {"num_heads": 4, "num_kv_heads": 4, "tied": False},
    # 37 blocks of int8 in a row of down: more than are widened at once
    "int8": {"weights": "int8", "intermediate": 1184, "vocab": 331, "tied": False},
    "qwen2": {"case": "qwen2"},
    "qwen3": {"case": "qwen3"},
}  # fmt: skip
CASES = [(shape, dtype) for shape in SHAPES for dtype in ("float32", "bfloat16")]
CASES += [("qwen3", "float16")]


@pytest.fixture(params=["off", "auto"])
def native(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass(frozen=True)
class Outcome:
    tokens: list[SampledToken]
    kv: bytes


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 259, length).tolist()


async def alone(driver: StepDriver, prompt_ids: list[int], chunk_tokens: int) -> Outcome:
    sequence = driver.open(prompt_ids, SAMPLING)
    tokens = [await driver.prefill(sequence, chunk_tokens)]
    while len(tokens) < SAMPLING.max_tokens:
        tokens += await driver.decode([sequence])
    outcome = Outcome(tokens, driver.kv_bytes(sequence))
    sequence.lease.release()
    return outcome


@pytest.mark.parametrize(("shape", "dtype"), CASES)
async def test_chunk_cuts_do_not_matter(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner, shape: str, dtype: str
) -> None:
    driver = StepDriver(make_runner(prepare_tiny(dtype, **SHAPES[shape])))
    for length in (1, 15, 16, 17, 127, 128, 129, 300):
        whole = await alone(driver, prompt(length), 1000)
        for chunk_tokens in (1, 16, 64, 256):
            assert await alone(driver, prompt(length), chunk_tokens) == whole


@pytest.mark.parametrize(("shape", "dtype"), CASES)
async def test_neighbours_do_not_matter(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner, shape: str, dtype: str
) -> None:
    """32 sequences of 1 to 600 tokens in one decode batch, beside chunks of others."""
    driver = StepDriver(make_runner(prepare_tiny(dtype, **SHAPES[shape])))
    lengths = np.random.default_rng(5).integers(1, 300, 32).tolist()
    lengths[7], lengths[20] = 600, 128
    expected = [await alone(driver, prompt(n, n), 64) for n in lengths]
    sequences = [driver.open(prompt(n, n), SAMPLING) for n in lengths]
    tokens = [[await driver.prefill(sequence, 64)] for sequence in sequences]
    other = driver.open(prompt(700))
    for _ in range(1, SAMPLING.max_tokens):
        rows = [StepRow(s, s.num_computed, 1, samples=True) for s in sequences]
        rows.insert(3, StepRow(other, other.num_computed, 100, samples=False))
        results = await driver.step(rows)
        assert results.pop(3) is None
        for found, token in zip(tokens, results, strict=True):
            assert token is not None
            found.append(token)
    found_kv = [driver.kv_bytes(sequence) for sequence in sequences]
    assert [Outcome(t, kv) for t, kv in zip(tokens, found_kv, strict=True)] == expected
    release(*sequences, other)


async def test_several_chunks_of_a_step_do_not_matter(make_runner: MakeRunner) -> None:
    driver = StepDriver(make_runner())
    expected = [await alone(driver, prompt(n, n), 64) for n in (40, 200, 90)]
    sequences = [driver.open(prompt(n, n), SAMPLING) for n in (40, 200, 90)]
    rows = [StepRow(s, 0, s.num_uncomputed, samples=True) for s in sequences]
    firsts = await driver.step(rows)
    assert firsts == [outcome.tokens[0] for outcome in expected]
    release(*sequences)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_block_size_does_not_matter(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner, dtype: str
) -> None:
    drivers = [
        StepDriver(make_runner(prepare_tiny(dtype), block_size=block_size))
        for block_size in (1, 4, 16, 32, 48, 256)
    ]
    for length in (5, 48, 257):
        outcomes = [await alone(driver, prompt(length), 64) for driver in drivers]
        assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
async def test_number_of_threads_does_not_matter(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner, shape: str, dtype: str
) -> None:
    prepared = prepare_tiny(dtype, **SHAPES[shape])
    outcomes = []
    for num_threads in (1, 2, 3):
        driver = StepDriver(make_runner(prepared, num_threads=num_threads))
        outcomes.append([await alone(driver, prompt(n), 256) for n in (1, 33, 400)])
    assert outcomes[1] == outcomes[0]
    assert outcomes[2] == outcomes[0]


async def test_recycled_blocks_do_not_matter(make_runner: MakeRunner) -> None:
    """What a block held before is masked."""
    driver = StepDriver(make_runner(num_blocks=30))
    fresh = await alone(driver, prompt(150), 64)
    for seed in range(3):
        await alone(driver, prompt(400, seed), 64)
    assert await alone(driver, prompt(150), 64) == fresh
    assert driver.pool.num_free == 30


async def test_forced_tokens_give_the_same_continuation(make_runner: MakeRunner) -> None:
    """Replay after a lost worker: prompt and delivered tokens go through prefill together."""
    driver = StepDriver(make_runner())
    whole = await alone(driver, prompt(50), 64)
    for num_forced in range(1, SAMPLING.max_tokens):
        forced = tuple(token.token_id for token in whole.tokens[:num_forced])
        sequence = driver.open(prompt(50), SAMPLING, forced_ids=forced)
        tokens = [await driver.prefill(sequence, 64)]
        while sequence.num_generated < SAMPLING.max_tokens:
            tokens += await driver.decode([sequence])
        assert tokens == whole.tokens[num_forced:]
        assert driver.kv_bytes(sequence) == whole.kv
        release(sequence)


def release(*sequences: Sequence) -> None:
    for sequence in sequences:
        sequence.lease.release()
