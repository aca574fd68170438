"""A context continued from cached blocks has the bits of one computed cold, at every boundary.

Chunk cuts stay at fixed multiples: after a hit that is no multiple the first chunk is a short one.
Compared are the KV, byte by byte, and the sampled tokens with logprobs of the best ten.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.chunking import next_chunk_len
from engine.model_runner import ModelRunner
from engine.prefix_cache import PrefixCache
from engine.sequence import Sequence
from engine.step import SampledToken, StepRow
from pdserve.prefix_keys import PrefixKeys
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from support.fake_engine import make_attempt
from support.model_steps import StepDriver

MakeRunner = Callable[..., ModelRunner]
PrepareTiny = Callable[..., PreparedModel]

BLOCK = 16
CHUNK = 64
SAMPLING = SamplingParams(max_tokens=20, temperature=0.8, seed=7, num_logprobs=10)


def prompt(length: int, seed: int = 3) -> list[int]:
    return np.random.default_rng(seed).integers(3, 259, length).tolist()


class CachedDriver(StepDriver):
    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner)
        self.cache = PrefixCache(self.pool, BLOCK, PrefixKeys("tiny", BLOCK))

    def begin(self, prompt_ids: list[int]) -> Sequence:
        attempt = make_attempt(prompt_ids, sampling=SAMPLING)
        claim = self.cache.claim(attempt, attempt.max_total_tokens, len(prompt_ids) - 1)
        lease = claim.take()
        assert lease is not None
        sequence = Sequence(attempt, lease, claim.chain)
        sequence.num_computed = self.cache.num_cached_tokens(lease)
        return sequence

    async def run(self, sequence: Sequence, num_tokens: int) -> list[SampledToken]:
        """In chunks, then token by token, as workers do; everything computed may be shared."""
        tokens: list[SampledToken] = []
        while len(tokens) < num_tokens:
            known = len(sequence.token_ids)
            count = next_chunk_len(sequence.num_computed, known, CHUNK)
            samples = sequence.num_computed + count == known
            found = await self.step([StepRow(sequence, sequence.num_computed, count, samples)])
            tokens += [token for token in found if token is not None]
            self.cache.computed(sequence)
        return tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_a_hit_at_any_block_boundary_gives_the_bits_of_a_cold_run(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner, dtype: str
) -> None:
    prepared, length = prepare_tiny(dtype), 150
    ids = prompt(length)
    cold_driver = CachedDriver(make_runner(prepared))
    cold = cold_driver.begin(ids)
    expected = await cold_driver.run(cold, 6)
    kv = cold_driver.kv_bytes(cold)
    cold.lease.release()
    for num_blocks in range(1, length // BLOCK + 1):
        driver = CachedDriver(make_runner(prepared))
        shared = driver.begin(ids[: num_blocks * BLOCK] + prompt(9, seed=num_blocks + 100))
        await driver.run(shared, 1)  # stays: its blocks are held by two
        warm = driver.begin(ids)
        assert warm.num_computed == num_blocks * BLOCK
        assert await driver.run(warm, 6) == expected
        assert driver.kv_bytes(warm) == kv
        shared.lease.release()
        warm.lease.release()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_blocks_filled_by_decode_steps_are_those_of_a_prefill(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner, dtype: str
) -> None:
    """The next turn of a conversation starts from KV that was computed token by token."""
    prepared = prepare_tiny(dtype)
    driver = CachedDriver(make_runner(prepared))
    first = driver.begin(prompt(41))
    answer = await driver.run(first, 20)
    first.lease.release()
    turn = prompt(41) + [token.token_id for token in answer] + prompt(30, seed=8)
    warm = driver.begin(turn)
    assert warm.num_computed == (41 + 19) // BLOCK * BLOCK
    cold_driver = CachedDriver(make_runner(prepared))
    cold = cold_driver.begin(turn)
    assert cold.num_computed == 0
    assert await driver.run(warm, 6) == await cold_driver.run(cold, 6)
    assert driver.kv_bytes(warm) == cold_driver.kv_bytes(cold)
    warm.lease.release()
    cold.lease.release()
