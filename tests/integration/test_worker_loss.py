"""Workers that die under way, at each point of a request: nothing lost, repeated or changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.config import EngineConfig
from engine.fake_runner import fake_tokens
from pdserve.errors import NoWorkers, RetriesExhausted
from pdserve.types import FinishReason, Role, SamplingParams, TokenEvent
from router.config import RouterConfig
from router.token_stream import TokenStream
from support.trio import Outcome, Trio, TrioOptions, collect, eventually

SAMPLING = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.7, seed=7)
PROMPT = [(i * 11) % 256 for i in range(50)]
ORACLE = fake_tokens(PROMPT, SAMPLING, SAMPLING.max_tokens)


def options(**changes: object) -> TrioOptions:
    made = TrioOptions(
        engine=EngineConfig(
            engine="fake", block_size=4, chunk_tokens=8, fake_prefill_us=200.0, fake_decode_ms=1.0
        )
    )
    return replace(made, **changes)  # type: ignore[arg-type]


class Reader:
    """Reads a stream in a task; tells how far it is."""

    def __init__(self, stream: TokenStream) -> None:
        self.tokens: list[TokenEvent] = []
        self._stream = stream
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> Outcome:
        async for token in self._stream:
            assert token.index == len(self.tokens)
            self.tokens.append(token)
        finish = self.tokens[-1].finish_reason
        assert finish is not None
        return Outcome([token.token_id for token in self.tokens], finish, self._stream.timing)

    async def reach(self, count: int) -> None:
        await eventually(lambda: len(self.tokens) >= count)

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(20):
            return await self._task


def computing(trio: Trio) -> Callable[[], bool]:
    status = trio.workers["p0"].app.worker.status
    return lambda: status().step > 0


@pytest.mark.parametrize("kv", ["inproc", "grpc"])
@pytest.mark.parametrize("victim", ["p0", "d0"])
@pytest.mark.parametrize("after_tokens", [0, 1, 2, 20])
async def test_restarted_worker_finishes_the_stream(
    victim: str, after_tokens: int, kv: str
) -> None:
    async with Trio(options(kv=kv)) as trio:
        reader = Reader(trio.start(PROMPT, SAMPLING))
        await eventually(computing(trio))
        await reader.reach(after_tokens)
        await trio.restart(victim)
        outcome = await reader.outcome()
        assert outcome.ids == ORACLE
        assert outcome.finish is FinishReason.LENGTH


@pytest.mark.parametrize("victim", ["p0", "d0"])
async def test_another_worker_takes_over_without_waiting(victim: str) -> None:
    async with Trio(options(num_prefill=2, num_decode=2)) as trio:
        readers = [Reader(trio.start(PROMPT, SAMPLING)) for _ in range(12)]
        await readers[0].reach(3)
        await trio.remove(victim)
        for reader in readers:
            assert (await reader.outcome()).ids == ORACLE


async def test_decode_lost_before_commit_redeems_the_held_kv() -> None:
    """The prompt is not computed again: its blocks are still at the prefill worker."""
    async with Trio(options(num_decode=2)) as trio:
        reader = Reader(trio.start(PROMPT, SAMPLING))
        await eventually(computing(trio))
        victim = next(
            name for name in ("d0", "d1") if trio.workers[name].app.worker.status().num_queued
        )
        await trio.remove(victim)
        outcome = await reader.outcome()
        assert outcome.ids == ORACLE
        assert outcome.timing.num_dispatches == 2
        chunks = -(-len(PROMPT) // 8)
        assert trio.workers["p0"].app.worker.status().step == chunks


async def test_prefill_lost_after_commit_changes_nothing() -> None:
    async with Trio(options()) as trio:
        reader = Reader(trio.start(PROMPT, SAMPLING))
        await reader.reach(5)
        await trio.remove("p0")
        outcome = await reader.outcome()
        assert outcome.ids == ORACLE
        assert outcome.timing.num_dispatches == 1


async def test_a_request_that_saw_two_workers_die_is_not_tried_on_a_third() -> None:
    async with Trio(options(num_decode=4)) as trio:
        reader = Reader(trio.start(PROMPT, replace(SAMPLING, max_tokens=300)))
        for num_tokens in (3, 6):
            await reader.reach(num_tokens)
            await trio.remove(running_on(trio))
        with pytest.raises(RetriesExhausted):
            await reader.outcome()


def running_on(trio: Trio) -> str:
    """The one decode worker with a running sequence."""
    (name,) = [
        name for name, running in trio.workers.items()
        if running.role is Role.DECODE and running.app.worker.status().num_running
    ]  # fmt: skip
    return name


async def test_colocated_worker_lost_and_replaced() -> None:
    async with Trio(options(mode="colocated", num_decode=1)) as trio:
        reader = Reader(trio.start(PROMPT, SAMPLING))
        await reader.reach(4)
        await trio.restart("d0")
        assert (await reader.outcome()).ids == ORACLE


async def test_no_worker_for_the_whole_patience() -> None:
    router = RouterConfig(worker_patience_s=0.05)
    async with Trio(options(num_prefill=0, router=router)) as trio:
        with pytest.raises(NoWorkers):
            await trio.generate(PROMPT, SAMPLING)


async def test_workers_that_join_late_serve_what_waited() -> None:
    async with Trio(options(num_prefill=0, num_decode=0)) as trio:
        readers = [Reader(trio.start(PROMPT, SAMPLING)) for _ in range(4)]
        await trio.add(Role.DECODE)
        await trio.add(Role.PREFILL)
        for reader in readers:
            assert (await reader.outcome()).ids == ORACLE


@pytest.mark.parametrize("victim", ["p0", "d0"])
async def test_worker_restarted_under_load(victim: str) -> None:
    async with Trio(options()) as trio:
        samplings = [replace(SAMPLING, seed=i, max_tokens=60) for i in range(24)]
        collecting = [
            asyncio.create_task(collect(trio.start(PROMPT[: 5 + i], sampling)))
            for i, sampling in enumerate(samplings)
        ]
        running = trio.workers["d0"].app.worker
        await eventually(lambda: running.status().num_running >= 4)
        await trio.restart(victim)
        for i, outcome in enumerate(await asyncio.gather(*collecting)):
            assert outcome.ids == fake_tokens(PROMPT[: 5 + i], samplings[i], 60)
