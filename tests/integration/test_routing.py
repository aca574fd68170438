"""Routing by what workers' caches hold, over the whole path, on the fake engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from engine.fake_runner import fake_tokens
from pdserve.errors import NoWorkers
from pdserve.types import SamplingParams
from router.config import RouterConfig
from support.trio import CHUNK_TOKENS, Trio, TrioOptions

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)


def conversation(number: int) -> list[int]:
    return [(number * 37 + position * 11) % 256 for position in range(5 * CHUNK_TOKENS)]


@pytest.mark.parametrize("mode", ["disaggregated", "colocated"])
async def test_the_next_turn_goes_where_the_conversation_is(mode: str) -> None:
    """Four conversations over three workers of each role; each turn's prefix is found again."""
    options = TrioOptions(mode=mode, num_prefill=3, num_decode=3)
    slow = replace(options.engine, fake_prefill_us=300.0)  # so that a prompt is what costs
    async with Trio(replace(options, engine=slow)) as trio:
        prompts = [conversation(number) for number in range(4)]
        homes: list[set[tuple[str, str]]] = [set() for _ in prompts]
        for turn in range(3):
            for number in range(len(prompts)):
                outcome = await trio.generate(prompts[number], GREEDY)
                timing = outcome.timing
                assert outcome.ids == fake_tokens(prompts[number], GREEDY, GREEDY.max_tokens)
                homes[number].add((timing.prefill_worker, timing.decode_worker))
                if turn:
                    assert timing.prefill_cached_tokens >= 4 * CHUNK_TOKENS
                    assert mode == "colocated" or timing.kv_cached_tokens >= 4 * CHUNK_TOKENS
                prompts[number] = prompts[number] + outcome.ids + [turn] * 3
        assert all(len(home) == 1 for home in homes)


@pytest.mark.parametrize("policy", ["round-robin", "least-loaded", "power-of-two"])
async def test_baselines_give_the_same_tokens(policy: str) -> None:
    router = replace(RouterConfig(), route_policy=policy)
    async with Trio(TrioOptions(num_prefill=2, num_decode=2, router=router)) as trio:
        prompts = [conversation(number % 3) for number in range(8)]
        outcomes = await asyncio.gather(*(trio.generate(ids, GREEDY) for ids in prompts))
    for ids, outcome in zip(prompts, outcomes, strict=True):
        assert outcome.ids == fake_tokens(ids, GREEDY, GREEDY.max_tokens)
    if policy == "round-robin":
        assert {outcome.timing.prefill_worker for outcome in outcomes} == {"p0", "p1"}


@pytest.mark.parametrize("prefill_place", ["always-remote", "always-local", "adaptive"])
async def test_where_a_prompt_is_computed_changes_no_token(prefill_place: str) -> None:
    """Prompts short and long, at once; the answer says where each was computed."""
    router = replace(
        RouterConfig(), prefill_place=prefill_place, local_prefill_tokens=2 * CHUNK_TOKENS
    )
    options = TrioOptions(num_decode=2, router=router)
    slow = replace(options.engine, fake_prefill_us=300.0)
    prompts = [conversation(number)[: 3 + 7 * (number % 6)] for number in range(12)]
    async with Trio(replace(options, engine=slow)) as trio:
        for _ in range(2):
            outcomes = await asyncio.gather(*(trio.generate(ids, GREEDY) for ids in prompts))
            for ids, outcome in zip(prompts, outcomes, strict=True):
                assert outcome.ids == fake_tokens(ids, GREEDY, GREEDY.max_tokens)
                timing = outcome.timing
                is_local = timing.prefill_worker == timing.decode_worker
                assert timing.prefill_place.startswith("local: " if is_local else "remote")
                assert is_local == (timing.kv_tokens + timing.kv_cached_tokens == 0)
                if prefill_place != "adaptive":
                    assert is_local == (prefill_place == "always-local")


@pytest.mark.parametrize("choice", ["refuse", "local"])
async def test_the_last_prefill_worker_leaves(choice: str) -> None:
    router = replace(RouterConfig(), without_prefill_worker=choice, worker_patience_s=0.05)
    async with Trio(TrioOptions(router=router)) as trio:
        await trio.remove("p0")
        ids = conversation(1)
        if choice == "refuse":
            with pytest.raises(NoWorkers):
                await trio.generate(ids, GREEDY)
        else:
            outcome = await trio.generate(ids, GREEDY)
            assert outcome.ids == fake_tokens(ids, GREEDY, GREEDY.max_tokens)
            assert outcome.timing.prefill_place == "local: no prefill worker"
