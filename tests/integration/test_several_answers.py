"""Several answers to one prompt: it is computed once, shipped once, and its blocks are shared."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from engine.fake_runner import fake_tokens
from pdserve.errors import RequestCancelled
from pdserve.types import Role, SamplingParams
from router.token_stream import TokenStream
from support.trio import BLOCK_SIZE, Outcome, Trio, TrioOptions, collect, eventually

SAMPLING = SamplingParams(max_tokens=30, temperature=0.8, ignore_eos=True)
MODES = [("disaggregated", "inproc"), ("disaggregated", "grpc"), ("colocated", "inproc")]


def prompt(num_tokens: int) -> list[int]:
    return [(i * 7 + num_tokens) % 250 for i in range(num_tokens)]


def start(trio: Trio, prompt_ids: Sequence[int], count: int, sampling: SamplingParams = SAMPLING
          ) -> list[TokenStream]:  # fmt: skip
    first = trio.start(prompt_ids, replace(sampling, seed=0))
    others = [
        trio.start(prompt_ids, replace(sampling, seed=seed), follows=first)
        for seed in range(1, count)
    ]
    return [first, *others]


def assert_right(
    outcomes: Sequence[Outcome], prompt_ids: list[int], sampling: SamplingParams = SAMPLING
) -> None:
    for seed, outcome in enumerate(outcomes):
        seeded = replace(sampling, seed=seed)
        assert outcome.ids == fake_tokens(prompt_ids, seeded, sampling.max_tokens)


@pytest.mark.parametrize(("mode", "kv"), MODES)
@pytest.mark.parametrize("num_tokens", [1, BLOCK_SIZE, BLOCK_SIZE + 1, 43])
async def test_answers_are_those_of_separate_requests_from_one_computation(
    mode: str, kv: str, num_tokens: int
) -> None:
    prompt_ids = prompt(num_tokens)
    options = TrioOptions(mode=mode, kv=kv)
    slow = replace(options.engine, fake_decode_ms=2.0)  # the first still runs when the others come
    async with Trio(replace(options, engine=slow)) as trio:
        streams = start(trio, prompt_ids, 5)
        outcomes = await asyncio.gather(*map(collect, streams))
        assert_right(outcomes, prompt_ids)
        first, *others = [outcome.timing for outcome in outcomes]
        assert first.kv_tokens == (num_tokens if mode == "disaggregated" else 0)
        for timing in others:  # only the token that each samples from was computed again
            assert timing.kv_bytes == 0
            assert timing.prefill_worker == timing.decode_worker == "d0"
            assert timing.prefill_cached_tokens == num_tokens - 1


async def test_blocks_of_the_prompt_are_held_once() -> None:
    """Room for one prompt and its answers (56 blocks), not for a prompt each (112)."""
    prompt_ids = prompt(20 * BLOCK_SIZE)
    options = TrioOptions()
    small = replace(options.engine, kv_memory_mib=kv_mib(num_blocks=64), fake_decode_ms=1.0)
    async with Trio(replace(options, decode_engine=small)) as trio:
        streams = start(trio, prompt_ids, 4)
        reading = [asyncio.create_task(collect(stream)) for stream in streams]
        worker = trio.workers["d0"].app.worker
        await eventually(lambda: worker.status().num_running == 4)
        assert_right(await asyncio.gather(*reading), prompt_ids)
        assert trio.workers["d0"].app.worker.num_parkings == 0  # type: ignore[union-attr]


async def test_one_that_comes_when_the_first_has_ended_takes_whole_blocks() -> None:
    prompt_ids = prompt(43)
    short = replace(SAMPLING, max_tokens=2)
    async with Trio(TrioOptions(mode="colocated")) as trio:
        await trio.generate(prompt_ids, short)
        timing = (await trio.generate(prompt_ids, short)).timing
        assert timing.prefill_cached_tokens == 42 // BLOCK_SIZE * BLOCK_SIZE


async def test_prompts_of_other_salts_are_not_shared() -> None:
    prompt_ids = prompt(43)
    options = TrioOptions(mode="colocated")
    slow = replace(options.engine, fake_decode_ms=2.0)
    async with Trio(replace(options, engine=slow)) as trio:
        first = asyncio.create_task(trio.generate(prompt_ids, SAMPLING))
        worker = trio.workers["d0"].app.worker
        await eventually(lambda: worker.status().num_running == 1)
        other = await trio.generate(prompt_ids, SAMPLING, cache_salt="mine")
        assert other.timing.prefill_cached_tokens == 0
        assert (await first).ids == other.ids


async def test_one_token_each() -> None:
    prompt_ids = prompt(19)
    one = replace(SAMPLING, max_tokens=1)
    async with Trio(TrioOptions(num_decode=0)) as trio:
        outcomes = await asyncio.gather(*map(collect, start(trio, prompt_ids, 3, one)))
        assert_right(outcomes, prompt_ids, one)


@pytest.mark.parametrize("prefix_cache", ["on", "off"])
async def test_without_a_prefix_cache_the_answers_are_the_same(prefix_cache: str) -> None:
    prompt_ids = prompt(30)
    options = TrioOptions()
    engine = replace(options.engine, prefix_cache=prefix_cache)
    async with Trio(replace(options, engine=engine)) as trio:
        outcomes = await asyncio.gather(*map(collect, start(trio, prompt_ids, 3)))
        assert_right(outcomes, prompt_ids)


async def test_others_go_on_when_the_first_is_cancelled() -> None:
    prompt_ids = prompt(30)
    async with Trio(TrioOptions()) as trio:
        first, *others = start(trio, prompt_ids, 3)
        first.cancel("enough")
        with pytest.raises(RequestCancelled):
            await collect(first)
        for seed, outcome in enumerate(await asyncio.gather(*map(collect, others)), start=1):
            assert outcome.ids == fake_tokens(prompt_ids, replace(SAMPLING, seed=seed), 30)


async def test_answers_survive_the_worker_that_has_their_prompt() -> None:
    prompt_ids = prompt(30)
    options = TrioOptions()
    slow = replace(options.engine, fake_decode_ms=5.0)
    async with Trio(replace(options, engine=slow)) as trio:
        streams = start(trio, prompt_ids, 4)
        reading = [asyncio.create_task(collect(stream)) for stream in streams]
        worker = trio.workers["d0"].app.worker
        await eventually(lambda: worker.status().num_running == 4)
        await trio.add(Role.DECODE)
        await trio.remove("d0")
        assert_right(await asyncio.gather(*reading), prompt_ids)


def kv_mib(num_blocks: int) -> float:
    """Memory for so many blocks of the fake model (2 layers, 1 head of 8, float32)."""
    return num_blocks * (2 * 2 * 1 * 8 * 4 * BLOCK_SIZE) / 2**20
