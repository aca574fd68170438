"""Prompts as long as the model's context, 256 sequences in one batch, and thousands of steps."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import numpy as np

from engine.model_runner import ModelRunner
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from support.model_steps import StepDriver

MakeRunner = Callable[..., ModelRunner]
PrepareTiny = Callable[..., PreparedModel]

CONTEXT = 8192


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 259, length).tolist()


async def test_a_prompt_that_fills_the_context(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner
) -> None:
    """Whatever the chunks: the same KV, the same last two tokens, up to the last position."""
    prepared = prepare_tiny("bfloat16", max_positions=CONTEXT, num_heads=2, num_kv_heads=1)
    driver = StepDriver(make_runner(prepared, num_threads=2, num_blocks=CONTEXT // 16))
    found = []
    for chunk_tokens in (256, 4096):
        sequence = driver.open(prompt(CONTEXT - 2, 1), SamplingParams(max_tokens=2))
        tokens = [await driver.prefill(sequence, chunk_tokens), *await driver.decode([sequence])]
        assert sequence.num_computed == CONTEXT - 1
        found.append((tokens, driver.kv_bytes(sequence)))
        sequence.lease.release()
    assert found[0] == found[1]


async def test_two_hundred_and_fifty_six_in_one_batch(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner
) -> None:
    """Each has the tokens and the KV that it has alone."""
    sampling = SamplingParams(max_tokens=3, temperature=0.7, seed=4, num_logprobs=3)
    lengths = [1 + 7 * i % 60 for i in range(256)]
    driver = StepDriver(make_runner(prepare_tiny("bfloat16"), num_threads=2, num_blocks=2048))
    sequences = [driver.open(prompt(n, i), sampling) for i, n in enumerate(lengths)]
    tokens = [[await driver.prefill(sequence, 64)] for sequence in sequences]
    for _ in range(1, sampling.max_tokens):
        for own, token in zip(tokens, await driver.decode(sequences), strict=True):
            own.append(token)
    together = [(own, driver.kv_bytes(s)) for own, s in zip(tokens, sequences, strict=True)]
    for sequence in sequences:
        sequence.lease.release()
    for index in range(0, 256, 5):
        alone = driver.open(prompt(lengths[index], index), sampling)
        own = [await driver.prefill(alone, 64)]
        while len(own) < sampling.max_tokens:
            own += await driver.decode([alone])
        assert (own, driver.kv_bytes(alone)) == together[index]
        alone.lease.release()


async def test_steps_leave_nothing_behind(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner
) -> None:
    """What Python holds after three thousand steps is what it held after a few hundred."""
    driver = StepDriver(make_runner(prepare_tiny("float32")))
    sampling = SamplingParams(max_tokens=20, temperature=0.7, seed=1, num_logprobs=2)

    async def steps(count: int) -> None:
        for _ in range(count // 20):
            await driver.generate(prompt(24, 3), sampling, chunk_tokens=16)

    tracemalloc.start()
    try:
        await steps(400)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await steps(3000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Free lists of Python and numpy fill by some 20 KB; one number kept a step would be 72 KB.
    assert after - before < 48_000
    assert driver.pool.num_free == driver.pool.num_blocks
