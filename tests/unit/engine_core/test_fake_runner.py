"""The fake engine: tokens equal to the plain loop, whatever the blocks; wrong KV is caught."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.block_pool import BlockPool
from engine.fake_model import EOS_TOKEN_ID, VOCAB_SIZE, prepare_fake_model
from engine.fake_runner import FakeRunner, fake_tokens
from engine.sequence import Sequence
from engine.step import StepRow
from pdserve.clock import ManualClock, MonotonicClock
from pdserve.errors import EngineFailure
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from support.fake_engine import generate, make_attempt, prompt_row

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
SEEDED = replace(GREEDY, temperature=0.8, seed=11)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    return prepare_fake_model(tmp_path_factory.mktemp("models"))


def make_runner(prepared: PreparedModel, block_size: int = 8, dtype: str = "float32") -> FakeRunner:
    return FakeRunner(
        prepared, block_size=block_size, num_blocks=64, clock=MonotonicClock(), dtype=dtype
    )


def prompt(num_tokens: int) -> list[int]:
    return [(7 * i) % 251 for i in range(num_tokens)]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, SamplingParams(max_tokens=300)])
@pytest.mark.parametrize(("block_size", "chunk_tokens"), [(4, 4), (8, 8), (8, 32), (16, 64)])
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 70])
async def test_tokens_do_not_depend_on_blocks_and_chunks(
    prepared: PreparedModel,
    num_tokens: int,
    block_size: int,
    chunk_tokens: int,
    sampling: SamplingParams,
) -> None:
    runner = make_runner(prepared, block_size)
    pool = BlockPool(runner.buffers.num_blocks)
    if block_size == 4 and sampling.max_tokens == 300:
        sampling = replace(sampling, max_tokens=100)
    attempt = make_attempt(prompt(num_tokens), sampling=sampling)
    tokens = await generate(runner, pool, attempt, chunk_tokens=chunk_tokens)
    assert tokens == fake_tokens(prompt(num_tokens), sampling)
    assert pool.num_free == pool.num_blocks


async def test_forced_tokens_are_continued_as_if_sampled(prepared: PreparedModel) -> None:
    expected = fake_tokens(prompt(10), SEEDED)
    runner = make_runner(prepared)
    attempt = make_attempt(prompt(10), sampling=SEEDED, forced_ids=expected[:9])
    pool = BlockPool(64)
    assert await generate(runner, pool, attempt, chunk_tokens=8) == expected[9:]


async def test_half_precision_layouts(prepared: PreparedModel) -> None:
    runner = make_runner(prepared, dtype="bfloat16")
    assert runner.layout.block_bytes * 2 == make_runner(prepared).layout.block_bytes
    attempt = make_attempt(prompt(20), sampling=GREEDY)
    tokens = await generate(runner, BlockPool(64), attempt, chunk_tokens=8)
    assert tokens == fake_tokens(prompt(20), GREEDY)


async def prefilled(runner: FakeRunner, pool: BlockPool, num_tokens: int) -> Sequence:
    """A sequence whose prompt is computed and whose first token is known."""
    lease = pool.lease(4)
    assert lease is not None
    sequence = Sequence(make_attempt(prompt(num_tokens), sampling=GREEDY), lease)
    (token,) = await runner.run([prompt_row(sequence)])
    assert token is not None
    sequence.num_computed = num_tokens
    sequence.append(token.token_id)
    return sequence


def copied(source: FakeRunner, sequence: Sequence, target: FakeRunner, pool: BlockPool) -> Sequence:
    """The sequence as it stands, in another engine with its own blocks."""
    lease = pool.lease(sequence.lease.num_blocks)
    assert lease is not None
    for mine, theirs in zip(lease.block_ids, sequence.lease.block_ids, strict=True):
        target.buffers.view(mine)[:] = source.buffers.view(theirs)
    copy = Sequence(sequence.attempt, lease)
    copy.token_ids = list(sequence.token_ids)
    copy.num_computed = sequence.num_computed
    return copy


async def test_kv_moves_between_engines(prepared: PreparedModel) -> None:
    source, target = make_runner(prepared), make_runner(prepared)
    pool, target_pool = BlockPool(64), BlockPool(64)
    spare = target_pool.lease(3)  # so that block ids differ
    assert spare is not None
    first = await prefilled(source, pool, 21)
    second = copied(source, first, target, target_pool)
    assert second.lease.block_ids != first.lease.block_ids
    (token,) = await target.run([prompt_row(second)])
    assert token is not None
    assert [second.token_ids[-1], token.token_id] == fake_tokens(prompt(21), GREEDY, 2)
    for lease in (spare, first.lease, second.lease):
        lease.release()


@pytest.mark.parametrize("position", [0, 7, 8, 13, 20])
@pytest.mark.parametrize("plane", [0, 1, 2, 3])
async def test_one_wrong_bit_of_moved_kv_is_caught(
    prepared: PreparedModel, position: int, plane: int
) -> None:
    source, target = make_runner(prepared), make_runner(prepared)
    pool, target_pool = BlockPool(64), BlockPool(64)
    first = await prefilled(source, pool, 21)
    second = copied(source, first, target, target_pool)
    slot_bytes = 8 * 4
    offset = (plane * 8 + position % 8) * slot_bytes + 5
    target.buffers.view(second.lease.block_at(position // 8))[offset] ^= 1
    with pytest.raises(EngineFailure, match=rf"KV of request r1 .* differs at position {position}"):
        await target.run([prompt_row(second)])
    first.lease.release()
    second.lease.release()


async def test_swapped_blocks_are_caught(prepared: PreparedModel) -> None:
    source, target = make_runner(prepared), make_runner(prepared)
    pool, target_pool = BlockPool(64), BlockPool(64)
    first = await prefilled(source, pool, 21)
    second = copied(source, first, target, target_pool)
    one, two = (target.buffers.view(block_id) for block_id in second.lease.block_ids[:2])
    one[:], two[:] = bytes(two), bytes(one)
    with pytest.raises(EngineFailure, match="differs at position 0"):
        await target.run([prompt_row(second)])
    first.lease.release()
    second.lease.release()


async def test_overwritten_last_slot_is_caught_in_later_steps(prepared: PreparedModel) -> None:
    runner, pool = make_runner(prepared), BlockPool(64)
    sequence = await prefilled(runner, pool, 12)
    block = runner.buffers.view(sequence.lease.block_at(1))
    block[3 * 32] ^= 0x80  # position 11
    with pytest.raises(EngineFailure, match="differs at position 11"):
        await runner.run([prompt_row(sequence)])
    sequence.lease.release()


async def test_rows_outside_the_sequence_or_its_blocks_are_refused(
    prepared: PreparedModel,
) -> None:
    runner, pool = make_runner(prepared), BlockPool(64)
    lease = pool.lease(1)
    assert lease is not None
    sequence = Sequence(make_attempt(prompt(9)), lease)
    with pytest.raises(EngineFailure, match="no block for position 8"):
        await runner.run([prompt_row(sequence)])
    with pytest.raises(EngineFailure, match="10 tokens at 0"):
        await runner.run([StepRow(sequence, 0, 10, samples=False)])
    lease.release()


async def test_a_step_takes_its_time_on_the_clock(prepared: PreparedModel) -> None:
    clock = ManualClock()
    runner = FakeRunner(
        prepared, block_size=8, num_blocks=64, clock=clock, prefill_us_per_token=1000.0,
        decode_step_ms=5.0,
    )  # fmt: skip
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    clock.sleep = sleep  # type: ignore[method-assign]
    pool = BlockPool(64)
    sequence = await prefilled(runner, pool, 12)
    other = pool.lease(1)
    assert other is not None
    fresh = Sequence(make_attempt(prompt(8), request_id="r2"), other)
    await runner.run([prompt_row(sequence), prompt_row(fresh)])
    assert slept == pytest.approx([0.012, 0.005 + 0.008])
    sequence.lease.release()
    other.release()


def test_min_tokens_masks_and_stop_ids_end() -> None:
    sampling = SamplingParams(max_tokens=400)
    free = fake_tokens(prompt(5), sampling)
    assert free[-1] == EOS_TOKEN_ID
    assert all(32 <= token_id <= 126 for token_id in free[:-1])
    held = fake_tokens(prompt(5), replace(sampling, min_tokens=200))
    assert len(held) >= 200
    assert EOS_TOKEN_ID not in held[:199]
    stop = replace(sampling, stop_token_ids=(free[2],), min_tokens=0)
    assert fake_tokens(prompt(5), stop) == free[: free.index(free[2]) + 1]
    late = fake_tokens(prompt(5), replace(stop, min_tokens=50))
    assert free[2] not in late[:50]


def test_seed_matters_only_with_temperature() -> None:
    greedy = fake_tokens(prompt(5), GREEDY)
    assert fake_tokens(prompt(5), replace(GREEDY, seed=3)) == greedy
    seeded = fake_tokens(prompt(5), SEEDED)
    assert seeded != greedy
    assert seeded != fake_tokens(prompt(5), replace(SEEDED, seed=12))


async def test_logprobs(prepared: PreparedModel) -> None:
    runner, pool = make_runner(prepared), BlockPool(64)
    lease = pool.lease(1)
    assert lease is not None
    sampling = replace(GREEDY, num_logprobs=3)
    sequence = Sequence(make_attempt(prompt(5), sampling=sampling), lease)
    (token,) = await runner.run([prompt_row(sequence)])
    assert token is not None
    assert token.logprobs is not None
    assert token.logprobs.chosen < 0
    assert token.logprobs.top[0] == (token.token_id, token.logprobs.chosen)
    assert len({token_id for token_id, _ in token.logprobs.top}) == 3
    lease.release()


def test_model_folder_is_the_same_every_time_and_its_tokenizer_loses_nothing(
    tmp_path: Path,
) -> None:
    from tokenizers import Tokenizer

    first = prepare_fake_model(tmp_path / "a")
    again = prepare_fake_model(tmp_path / "a")
    other = prepare_fake_model(tmp_path / "b")
    assert first == again
    assert other.fingerprint == first.fingerprint
    assert prepare_fake_model(tmp_path / "a", "bfloat16").fingerprint != first.fingerprint
    assert [path.name[:4] for path in (tmp_path / "a").iterdir()] == ["fake", "fake"]
    tokenizer = Tokenizer.from_file(str(first.tokenizer_path))
    text = "  Ünïcode, tabs\tand\nlines \U0001f600 12345"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("<eos>") == EOS_TOKEN_ID
    assert tokenizer.get_vocab_size() <= VOCAB_SIZE
    assert tokenizer.encode("<user>a<eos>", add_special_tokens=False).ids == [257, 97, 256]
    assert first.chat_template is not None


def test_the_fake_path_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from engine.build import build_runner, prepare\n"
        "from engine.config import EngineConfig\n"
        "from pdserve.clock import MonotonicClock\n"
        "config = EngineConfig(engine='fake')\n"
        "build_runner(config, prepare(config), MonotonicClock())\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PDSERVE_CACHE": str(tmp_path)}, timeout=60
    )
