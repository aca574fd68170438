"""The whole path in one process on the fake engine, whose tokens are right only if the KV is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from decode_worker.config import DecodeConfig
from engine.fake_runner import fake_tokens
from kvtransfer.config import TransferConfig
from kvtransfer.intake import IntakeBudget
from pdserve.types import FinishReason, SamplingParams
from support.trio import BLOCK_SIZE, CHUNK_TOKENS, Outcome, Trio, TrioOptions, eventually

GREEDY = SamplingParams(max_tokens=20, ignore_eos=True)
SEEDED = replace(GREEDY, temperature=0.8, seed=1234)
MODES = [("disaggregated", "inproc"), ("disaggregated", "grpc"), ("colocated", "inproc")]
LENGTHS = [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, CHUNK_TOKENS, 5 * CHUNK_TOKENS + 3]


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(salt * 31 + i * 7) % 256 for i in range(length)]


def oracle(length: int, sampling: SamplingParams, salt: int = 0) -> list[int]:
    return fake_tokens(prompt(length, salt), sampling, sampling.max_tokens)


@pytest.mark.parametrize(("mode", "kv"), MODES)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_every_prompt_length_gives_the_tokens_of_one_process(
    mode: str, kv: str, sampling: SamplingParams
) -> None:
    async with Trio(TrioOptions(mode=mode, kv=kv)) as trio:
        for length in LENGTHS:
            outcome = await trio.generate(prompt(length), sampling)
            assert outcome.ids == oracle(length, sampling)
            assert outcome.finish is FinishReason.LENGTH


@pytest.mark.parametrize(("mode", "kv"), MODES)
async def test_sixty_four_streams_at_once(mode: str, kv: str) -> None:
    async with Trio(TrioOptions(mode=mode, kv=kv, num_prefill=2, num_decode=2)) as trio:
        outcomes = await many(trio, 64)
        for salt, outcome in enumerate(outcomes):
            assert outcome.ids == oracle(3 + salt, SEEDED, salt)


async def test_parking_under_pressure_changes_no_token() -> None:
    options = TrioOptions()
    small = replace(options.engine, kv_memory_mib=kv_mib(num_blocks=40), fake_decode_ms=0.5)
    long = replace(SEEDED, max_tokens=100)
    async with Trio(replace(options, decode_engine=small)) as trio:
        outcomes = await many(trio, 16, length=9, sampling=long)
        for salt, outcome in enumerate(outcomes):
            assert outcome.ids == oracle(9 + salt, long, salt)
        assert trio.workers["d0"].app.worker.num_parkings > 0  # type: ignore[union-attr]


@pytest.mark.parametrize(("block_size", "chunk_tokens"), [(1, 4), (16, 16), (8, 64)])
async def test_other_block_and_chunk_sizes(block_size: int, chunk_tokens: int) -> None:
    options = TrioOptions()
    engine = replace(options.engine, block_size=block_size, chunk_tokens=chunk_tokens)
    async with Trio(replace(options, engine=engine)) as trio:
        for length in (1, 15, 16, 17, 70):
            assert (await trio.generate(prompt(length), GREEDY)).ids == oracle(length, GREEDY)


@pytest.mark.parametrize("kv", ["inproc", "grpc"])
@pytest.mark.parametrize(("prefill_size", "decode_size"), [(4, 8), (8, 4), (1, 8)])
async def test_workers_with_unlike_block_sizes(
    prefill_size: int, decode_size: int, kv: str
) -> None:
    """Also prompts whose beginning the decode worker has: its blocks end elsewhere."""
    options = TrioOptions(kv=kv)
    prefill, decode = (
        replace(options.engine, block_size=size) for size in (prefill_size, decode_size)
    )
    async with Trio(replace(options, prefill_engine=prefill, decode_engine=decode)) as trio:
        for length in (1, 15, 16, 17, 70, 70, 33):
            assert (await trio.generate(prompt(length), GREEDY)).ids == oracle(length, GREEDY)


async def test_small_frames_and_credit() -> None:
    transfer = TransferConfig(max_frame_bytes=1, credit_bytes=1, intake_bytes_per_step=1)
    async with Trio(TrioOptions(transfer=transfer)) as trio:
        outcomes = await many(trio, 8, length=30)
        for salt, outcome in enumerate(outcomes):
            assert outcome.ids == oracle(30 + salt, SEEDED, salt)


@pytest.mark.parametrize("kv", ["inproc", "grpc"])
async def test_between_the_ends_of_two_steps_no_more_kv_comes_in_than_the_budget(
    kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is ready: three prompts arrive beside a stream that runs all the time."""
    taken: list[int] = []  # bytes at the end of each step
    refill = IntakeBudget.refill

    def recorded(budget: IntakeBudget) -> None:
        taken.append(budget.bytes_taken)
        refill(budget)

    monkeypatch.setattr(IntakeBudget, "refill", recorded)
    block_bytes = int(kv_mib(num_blocks=1) * 2**20)
    transfer = TransferConfig(max_frame_bytes=1, intake_bytes_per_step=2 * block_bytes)
    options = TrioOptions(kv=kv, transfer=transfer)
    slow = replace(options.engine, fake_decode_ms=2.0)
    async with Trio(replace(options, decode_engine=slow)) as trio:
        steady = asyncio.create_task(trio.generate(prompt(8), replace(GREEDY, max_tokens=200)))
        await eventually(lambda: bool(taken))
        timings = [each.timing for each in await many(trio, 3, length=60)]
        assert not steady.done()
        await steady
        steps = [later - earlier for earlier, later in zip(taken, taken[1:], strict=False)]
        assert max(steps) == 2 * block_bytes
        assert sum(steps) == sum(timing.kv_bytes for timing in timings)
        status = trio.workers["d0"].app.worker.status()
        assert status.kv_intake_bytes == taken[-1]
        assert status.kv_intake_waits > 0


async def test_the_ledger_says_where_and_how_much_and_adds_up() -> None:
    async with Trio(TrioOptions()) as trio:
        timing = (await trio.generate(prompt(30), GREEDY)).timing
        layout = trio.workers["p0"].runner.layout
    assert (timing.prefill_worker, timing.decode_worker) == ("p0", "d0")
    assert timing.kv_tokens == 30
    assert timing.kv_bytes == layout.num_blocks(30) * layout.block_bytes
    assert timing.kv_transport == "inproc"
    assert (timing.num_prompt_tokens, timing.num_generated_tokens) == (30, 20)
    assert timing.num_dispatches == 1
    assert 0 < timing.ttft_s + timing.first_gap_s <= timing.total_s + 1e-9


async def test_one_token_needs_no_decode_worker_and_moves_no_kv() -> None:
    async with Trio(TrioOptions(num_decode=0)) as trio:
        one = replace(GREEDY, max_tokens=1)
        outcome = await trio.generate(prompt(20), one)
    assert outcome.ids == oracle(20, one)
    assert outcome.timing.kv_bytes == 0


async def test_end_of_sequence_at_any_index_ends_the_stream() -> None:
    sampling = SamplingParams(max_tokens=300, temperature=1.0)
    finishes = set()
    async with Trio(TrioOptions()) as trio:
        for salt in range(12):
            seeded = replace(sampling, seed=salt)
            outcome = await trio.generate(prompt(5, salt), seeded)
            assert outcome.ids == fake_tokens(prompt(5, salt), seeded, 300)
            finishes.add(outcome.finish)
    assert FinishReason.STOP in finishes


async def test_stop_token_as_the_very_first_token() -> None:
    first = oracle(6, GREEDY)[0]
    async with Trio(TrioOptions()) as trio:
        stopping = replace(GREEDY, stop_token_ids=(first,))
        outcome = await trio.generate(prompt(6), stopping)
    assert (outcome.ids, outcome.finish) == ([first], FinishReason.STOP)


async def test_decode_full_while_prefill_is_ready_waits_and_goes_on() -> None:
    options = TrioOptions(decode=DecodeConfig(max_running=1))
    async with Trio(options) as trio:
        outcomes = await many(trio, 6)
        for salt, outcome in enumerate(outcomes):
            assert outcome.ids == oracle(3 + salt, SEEDED, salt)


async def test_two_way_deadlock_does_not_happen() -> None:
    """X finished and pinned at P, D full; Y half-prefilled: nobody waits in a circle."""
    options = TrioOptions()
    tight = replace(options.engine, kv_memory_mib=kv_mib(num_blocks=24))
    async with Trio(
        replace(options, prefill_engine=tight, decode_engine=tight, num_prefill=2)
    ) as trio:
        outcomes = await many(trio, 24, length=40, step=0)
        for salt, outcome in enumerate(outcomes):
            assert outcome.ids == oracle(40, SEEDED, salt)


async def many(
    trio: Trio, count: int, length: int = 3, step: int = 1, sampling: SamplingParams = SEEDED
) -> list[Outcome]:
    return await asyncio.gather(
        *(trio.generate(prompt(length + step * salt, salt), sampling) for salt in range(count))
    )


def kv_mib(num_blocks: int) -> float:
    """Memory for so many blocks of the fake model (2 layers, 1 head of 8, float32)."""
    return num_blocks * (2 * 2 * 1 * 8 * 4 * BLOCK_SIZE) / 2**20


@pytest.mark.parametrize("kv", ["inproc", "grpc"])
async def test_a_prompt_that_computes_for_longer_than_its_ticket_lives(kv: str) -> None:
    """1.6 s, where the ticket has 1."""
    options = TrioOptions(kv=kv)
    options = replace(
        options,
        router=replace(options.router, ticket_ttl_s=1.0),
        engine=replace(options.engine, fake_prefill_us=40_000.0),
    )
    async with Trio(options) as trio:
        outcome = await trio.generate(prompt(40), GREEDY)
        assert outcome.ids == oracle(40, GREEDY)
        assert outcome.timing.num_dispatches == 1
        assert outcome.timing.kv_tokens == 40
