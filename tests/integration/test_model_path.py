"""The whole path on the real engine with tiny random checkpoints.

Oracle: one plain loop over the runner, in the same dtype. In float32 the tokens must be equal in
every mode, also when parts are computed again (parking by recompute, retries); in bfloat16 they
must be equal in every mode without a replay (docs/architecture.md says what is promised where).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from decode_worker.config import DecodeConfig
from engine.block_pool import BlockPool
from engine.build import build_runner
from engine.config import EngineConfig
from engine.modelfiles.prepare import prepare_model
from pdserve.clock import MonotonicClock
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from router.config import RouterConfig
from support.fake_engine import generate, make_attempt
from support.tiny_families import write_tiny_family
from support.tiny_llama import write_tiny_llama
from support.trio import Trio, TrioOptions, collect, eventually

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
SEEDED = replace(GREEDY, temperature=0.9, top_p=0.95, seed=99)
BLOCK = 16
CHUNK = 32
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, CHUNK, 3 * CHUNK + 5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), seed=5)


def engine_of(checkpoint: Path, dtype: str, **changes: object) -> EngineConfig:
    made = EngineConfig(
        model=str(checkpoint), dtype=dtype, threads=1, block_size=BLOCK, chunk_tokens=CHUNK,
        kv_memory_mib=8.0, max_model_len=512,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def prepared(checkpoint: Path, dtype: str, weights: str = "full") -> PreparedModel:
    return prepare_model(
        str(checkpoint), dtype, weights=weights, cache_dir=checkpoint.parent / "cache"
    )


def prompt(length: int) -> list[int]:
    return [(length * 17 + i * 29) % 250 for i in range(length)]


async def plain_loop(
    engine: EngineConfig, model: PreparedModel, prompts: list[list[int]], sampling: SamplingParams
) -> list[list[int]]:
    """Each prompt alone, one sequence in the whole engine."""
    runner = build_runner(engine, model, MonotonicClock())
    pool = BlockPool(runner.buffers.num_blocks)
    found = [
        await generate(
            runner, pool, make_attempt(ids, sampling=sampling), chunk_tokens=engine.chunk_tokens,
            max_model_len=512,
        )
        for ids in prompts
    ]  # fmt: skip
    await runner.close()
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize(("mode", "kv"), [("disaggregated", "inproc"), ("disaggregated", "grpc"),
                                          ("colocated", "inproc")])  # fmt: skip
async def test_every_mode_gives_the_tokens_of_one_plain_loop(
    checkpoint: Path, dtype: str, sampling: SamplingParams, mode: str, kv: str
) -> None:
    engine, model = engine_of(checkpoint, dtype), prepared(checkpoint, dtype)
    prompts = [prompt(length) for length in LENGTHS]
    expected = await plain_loop(engine, model, prompts, sampling)
    async with Trio(TrioOptions(mode=mode, kv=kv, engine=engine, model=model)) as trio:
        alone = [(await trio.generate(ids, sampling)).ids for ids in prompts]
        together = await asyncio.gather(*(trio.generate(ids, sampling) for ids in prompts))
    assert alone == expected
    assert [outcome.ids for outcome in together] == expected


@pytest.mark.parametrize(
    ("case", "dtype"), [("qwen2", "float16"), ("qwen3, yarn", "float32"), ("phi3", "float16")]
)
async def test_other_families_and_float16(tmp_path: Path, case: str, dtype: str) -> None:
    write_tiny_family(tmp_path / "model", case)
    engine, model = engine_of(tmp_path / "model", dtype), prepared(tmp_path / "model", dtype)
    prompts = [prompt(length) for length in LENGTHS]
    expected = await plain_loop(engine, model, prompts, SEEDED)
    for mode, kv in (("disaggregated", "grpc"), ("colocated", "inproc")):
        async with Trio(TrioOptions(mode=mode, kv=kv, engine=engine, model=model)) as trio:
            outcomes = await asyncio.gather(*(trio.generate(ids, SEEDED) for ids in prompts))
        assert [outcome.ids for outcome in outcomes] == expected


@pytest.mark.parametrize(("block_size", "chunk_tokens"), [(4, 16), (32, 64), (16, 128)])
async def test_block_and_chunk_sizes_change_no_token(
    checkpoint: Path, block_size: int, chunk_tokens: int
) -> None:
    model = prepared(checkpoint, "float32")
    prompts = [prompt(length) for length in LENGTHS]
    expected = await plain_loop(engine_of(checkpoint, "float32"), model, prompts, SEEDED)
    other = engine_of(checkpoint, "float32", block_size=block_size, chunk_tokens=chunk_tokens)
    async with Trio(TrioOptions(engine=other, model=model)) as trio:
        outcomes = await asyncio.gather(*(trio.generate(ids, SEEDED) for ids in prompts))
    assert [outcome.ids for outcome in outcomes] == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_int8_weights_on_both_roles(checkpoint: Path, dtype: str) -> None:
    engine, model = engine_of(checkpoint, dtype), prepared(checkpoint, dtype, "int8")
    prompts = [prompt(length) for length in LENGTHS]
    expected = await plain_loop(engine, model, prompts, SEEDED)
    for mode, kv in (("disaggregated", "grpc"), ("colocated", "inproc")):
        async with Trio(TrioOptions(mode=mode, kv=kv, engine=engine, model=model)) as trio:
            outcomes = await asyncio.gather(*(trio.generate(ids, SEEDED) for ids in prompts))
        assert [outcome.ids for outcome in outcomes] == expected


async def test_int8_decode_goes_on_from_the_kv_of_full_prefill(checkpoint: Path) -> None:
    """The first token is the full model's; what follows is int8's own, the same every time."""
    engine, model = engine_of(checkpoint, "float32"), prepared(checkpoint, "float32")
    prompts = [prompt(length) for length in LENGTHS]
    full = await plain_loop(engine, model, prompts, GREEDY)
    options = TrioOptions(
        engine=engine, model=model, decode_model=prepared(checkpoint, "float32", "int8"),
        router=RouterConfig(mixed_weights="allow"),
    )  # fmt: skip
    async with Trio(options) as trio:
        first = [(await trio.generate(ids, GREEDY)).ids for ids in prompts]
        again = await asyncio.gather(*(trio.generate(ids, GREEDY) for ids in prompts))
    assert [ids[0] for ids in first] == [ids[0] for ids in full]
    assert [len(ids) for ids in first] == [GREEDY.max_tokens] * len(prompts)
    assert [outcome.ids for outcome in again] == first


async def test_thirty_two_at_once_equal_each_alone(checkpoint: Path) -> None:
    engine, model = engine_of(checkpoint, "float32"), prepared(checkpoint, "float32")
    prompts = [prompt(3 + 2 * i) for i in range(32)]
    expected = await plain_loop(engine, model, prompts, GREEDY)
    async with Trio(TrioOptions(engine=engine, model=model)) as trio:
        outcomes = await asyncio.gather(*(trio.generate(ids, GREEDY) for ids in prompts))
    assert [outcome.ids for outcome in outcomes] == expected


@pytest.mark.parametrize("parking", ["copy", "recompute"])
async def test_parking_changes_no_token(checkpoint: Path, parking: str) -> None:
    engine, model = engine_of(checkpoint, "float32"), prepared(checkpoint, "float32")
    long = replace(SEEDED, max_tokens=60)
    prompts = [prompt(14 + i) for i in range(8)]
    expected = await plain_loop(engine, model, prompts, long)
    block_mib = 2 * 2 * 2 * 16 * 4 * BLOCK / 2**20  # 2 layers, 2 KV heads of 16, float32
    small = replace(engine, kv_memory_mib=20 * block_mib, max_model_len=128)
    options = TrioOptions(
        engine=engine, decode_engine=small, model=model, decode=DecodeConfig(parking=parking)
    )
    async with Trio(options) as trio:
        outcomes = await asyncio.gather(*(trio.generate(ids, long) for ids in prompts))
        assert trio.workers["d0"].app.worker.num_parkings > 0  # type: ignore[union-attr]
    assert [outcome.ids for outcome in outcomes] == expected


@pytest.mark.parametrize("victim", ["p0", "d0"])
@pytest.mark.parametrize("after_tokens", [0, 1, 10])
async def test_retries_change_no_token(checkpoint: Path, victim: str, after_tokens: int) -> None:
    engine, model = engine_of(checkpoint, "float32"), prepared(checkpoint, "float32")
    long = replace(SEEDED, max_tokens=40)
    ids = prompt(70)
    (expected,) = await plain_loop(engine, model, [ids], long)
    async with Trio(TrioOptions(engine=engine, model=model)) as trio:
        stream = trio.start(ids, long)
        got: list[int] = []
        if after_tokens == 0:
            await eventually(lambda: trio.workers["p0"].app.worker.status().step > 0)
            await trio.restart(victim)
        async for token in stream:
            got.append(token.token_id)
            if len(got) == after_tokens:
                await trio.restart(victim)
    assert got == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_several_answers_are_those_of_separate_requests(checkpoint: Path, dtype: str) -> None:
    engine, model = engine_of(checkpoint, dtype), prepared(checkpoint, dtype)
    seeds = [replace(SEEDED, seed=seed) for seed in range(3)]
    prompts = [prompt(length) for length in LENGTHS]
    expected = [await plain_loop(engine, model, prompts, sampling) for sampling in seeds]
    async with Trio(TrioOptions(engine=engine, model=model)) as trio:
        for position, ids in enumerate(prompts):
            first = trio.start(ids, seeds[0])
            others = [trio.start(ids, sampling, follows=first) for sampling in seeds[1:]]
            outcomes = await asyncio.gather(*map(collect, (first, *others)))
            assert [o.ids for o in outcomes] == [each[position] for each in expected]
