"""The prefix cache over the whole path, on the fake engine: a hit on wrong KV is another token.

Every Trio ends with all pools full: blocks that are only cached are free ones.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from engine.fake_runner import fake_tokens
from pdserve.types import SamplingParams
from support.trio import BLOCK_SIZE, CHUNK_TOKENS, Outcome, Trio, TrioOptions, eventually

GREEDY = SamplingParams(max_tokens=10, ignore_eos=True)
MODES = [("disaggregated", "inproc"), ("disaggregated", "grpc"), ("colocated", "inproc")]
LENGTHS = [1, BLOCK_SIZE, BLOCK_SIZE + 1, CHUNK_TOKENS, 3 * CHUNK_TOKENS + 5, 40]


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(salt * 31 + i * 7) % 256 for i in range(length)]


def oracle(ids: list[int], sampling: SamplingParams = GREEDY) -> list[int]:
    return fake_tokens(ids, sampling, sampling.max_tokens)


def computable(num_tokens: int) -> int:
    """Tokens of a prompt seen before that need not be computed again: the last one must."""
    return (num_tokens - 1) // BLOCK_SIZE * BLOCK_SIZE


def whole_blocks(num_tokens: int) -> int:
    return num_tokens // BLOCK_SIZE * BLOCK_SIZE


@pytest.mark.parametrize(("mode", "kv"), MODES)
async def test_a_prompt_seen_before_is_neither_computed_nor_shipped_again(
    mode: str, kv: str
) -> None:
    async with Trio(TrioOptions(mode=mode, kv=kv)) as trio:
        for salt, length in enumerate(LENGTHS):
            ids = prompt(length, salt + 1)
            cold, warm = [await trio.generate(ids, GREEDY) for _ in range(2)]
            assert cold.ids == warm.ids == oracle(ids)
            assert cold.timing.prefill_cached_tokens == cold.timing.kv_cached_tokens == 0
            assert warm.timing.prefill_cached_tokens == computable(length)
            if mode == "disaggregated":
                assert warm.timing.kv_cached_tokens == whole_blocks(length)
                assert warm.timing.kv_tokens == length - whole_blocks(length)
                assert bool(warm.timing.kv_bytes) == (length % BLOCK_SIZE > 0)


@pytest.mark.parametrize(("mode", "kv"), MODES)
async def test_the_next_turn_ships_only_what_is_new(mode: str, kv: str) -> None:
    """The decode worker has the answer's KV too, which no prefill worker ever had."""
    async with Trio(TrioOptions(mode=mode, kv=kv)) as trio:
        ids, num_before = prompt(3 * CHUNK_TOKENS), 0
        for turn in range(4):
            outcome = await trio.generate(ids, GREEDY)
            assert outcome.ids == oracle(ids)
            if turn:
                known = whole_blocks(num_before - 1)  # the last token of an answer has no KV
                hit = outcome.timing.kv_cached_tokens
                if mode == "colocated":
                    hit = outcome.timing.prefill_cached_tokens
                assert hit == known
                if mode == "disaggregated":
                    assert outcome.timing.kv_tokens == len(ids) - known
            num_before = len(ids) + len(outcome.ids)
            ids = ids + outcome.ids + prompt(5, turn)


@pytest.mark.parametrize("mode", ["disaggregated", "colocated"])
async def test_a_salt_shares_with_itself_alone(mode: str) -> None:
    ids = prompt(30)
    async with Trio(TrioOptions(mode=mode)) as trio:
        for salt in ("", "alice", "bob"):
            for expected in (0, computable(30)):
                outcome = await trio.generate(ids, GREEDY, cache_salt=salt)
                assert outcome.ids == oracle(ids)
                assert outcome.timing.prefill_cached_tokens == expected
                if mode == "disaggregated":
                    assert bool(outcome.timing.kv_cached_tokens) == bool(expected)


@pytest.mark.parametrize("mode", ["disaggregated", "colocated"])
async def test_off_keeps_nothing(mode: str) -> None:
    options = TrioOptions(mode=mode)
    off = replace(options.engine, prefix_cache="off")
    async with Trio(replace(options, engine=off)) as trio:
        for _ in range(2):
            outcome = await trio.generate(prompt(30), GREEDY)
            assert outcome.ids == oracle(prompt(30))
            timing = outcome.timing
            assert (timing.prefill_cached_tokens, timing.kv_cached_tokens) == (0, 0)
        assert all(entry.status.cached_blocks == 0 for entry in trio.router.status().workers)


async def test_status_tells_what_is_cached_and_free_blocks_are_all() -> None:
    async with Trio(TrioOptions()) as trio:
        await trio.generate(prompt(30), GREEDY)
        await trio.assert_settled()
        await eventually(
            lambda: all(
                entry.status.free_blocks == entry.status.total_blocks
                for entry in trio.router.status().workers
            )
        )
        cached = {
            entry.worker_id: entry.status.cached_blocks for entry in trio.router.status().workers
        }
    # 30 prompt tokens; at the decode worker 9 of the 10 generated ones too
    assert cached == {"p0": 30 // BLOCK_SIZE, "d0": 39 // BLOCK_SIZE}


@pytest.mark.parametrize("victim", ["p0", "d0"])
async def test_a_worker_that_lost_its_cache_changes_no_token(victim: str) -> None:
    """The two sides may know different prefixes: each starts where it can."""
    async with Trio(TrioOptions()) as trio:
        await trio.generate(prompt(30), GREEDY)
        await trio.restart(victim)
        outcome = await trio.generate(prompt(30), GREEDY)
    assert outcome.ids == oracle(prompt(30))
    hits = (outcome.timing.prefill_cached_tokens, outcome.timing.kv_cached_tokens)
    assert hits == ((0, 28) if victim == "p0" else (28, 0))


@pytest.mark.parametrize("parking", ["copy", "recompute"])
@pytest.mark.parametrize("mode", ["disaggregated", "colocated"])
async def test_crowded_pools_change_no_token_and_lock_nobody_out(mode: str, parking: str) -> None:
    """Conversations that share beginnings, in pools too small for them: hits, evictions,
    parking, arrivals that hold a prefix against running ones that grow."""
    options = TrioOptions(mode=mode)
    tight = replace(options.engine, kv_memory_mib=kv_mib(num_blocks=40), fake_decode_ms=0.2)
    decode = replace(options.decode, parking=parking)
    draw = random.Random(f"{mode} {parking}")
    async with Trio(
        replace(options, prefill_engine=tight, decode_engine=tight, decode=decode)
    ) as trio:
        outcomes = await asyncio.gather(*(converse(trio, draw.randrange(1000)) for _ in range(16)))
    hits = [o.timing.prefill_cached_tokens + o.timing.kv_cached_tokens for o in sum(outcomes, [])]
    assert any(hits)


async def converse(trio: Trio, seed: int) -> list[Outcome]:
    """Three turns after one of two common beginnings; each answer checked."""
    draw = random.Random(seed)
    ids = prompt(draw.choice([16, 24]), salt=draw.randrange(2))
    outcomes = []
    for _ in range(3):
        sampling = replace(GREEDY, max_tokens=draw.choice([1, 4, 40]), temperature=1.0, seed=seed)
        outcome = await trio.generate(ids, sampling)
        assert outcome.ids == oracle(ids, sampling)
        outcomes.append(outcome)
        ids = ids + outcome.ids + prompt(draw.randrange(4), salt=seed)
    return outcomes


def kv_mib(num_blocks: int) -> float:
    """Memory for so many blocks of the fake model (2 layers, 1 head of 8, float32)."""
    return num_blocks * (2 * 2 * 1 * 8 * 4 * BLOCK_SIZE) / 2**20
