"""KV that arrives damaged, late or not at all: the answer is right or there is a typed error."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fake_runner import fake_tokens
from kvtransfer.config import TransferConfig
from pdserve.errors import RetriesExhausted
from pdserve.types import SamplingParams
from support.damaged_kv import Harm
from support.trio import Trio, TrioOptions

SAMPLING = SamplingParams(max_tokens=12, ignore_eos=True)
PROMPT = [(i * 5) % 256 for i in range(27)]
ORACLE = fake_tokens(PROMPT, SAMPLING, 12)
BLOCK_BY_BLOCK = TransferConfig(max_frame_bytes=1)  # one frame a block, however fast chunks come
NUM_MESSAGES = 1 + 7 + 1  # Ready, 27 tokens in blocks of 4, Commit


def once(index: int, change: Harm) -> Harm:
    """Harm the message ``index`` of the first read only."""
    left = [1]

    def harm(n: int, data: bytes) -> bytes | None:
        if n == index and left[0]:
            left[0] -= 1
            return change(n, data)
        return data

    return harm


@pytest.mark.parametrize("index", range(NUM_MESSAGES))
async def test_line_cut_at_any_message_is_redeemed(index: int) -> None:
    """The prompt is computed once whatever is cut."""
    options = TrioOptions(harm=once(index, lambda n, data: None), transfer=BLOCK_BY_BLOCK)
    async with Trio(options) as trio:
        outcome = await trio.generate(PROMPT, SAMPLING)
        assert outcome.ids == ORACLE
        assert outcome.timing.num_dispatches == 2
        assert trio.workers["p0"].app.worker.status().step == 4


@settings(max_examples=60)
@given(
    index=st.integers(0, NUM_MESSAGES - 1),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_never_changes_an_answer(index: int, where: float, bit: int) -> None:
    def flip(_n: int, data: bytes) -> bytes:
        damaged = bytearray(data)
        damaged[int(where * len(damaged))] ^= 1 << bit
        return bytes(damaged)

    async def run() -> None:
        async with Trio(TrioOptions(harm=once(index, flip), transfer=BLOCK_BY_BLOCK)) as trio:
            assert (await trio.generate(PROMPT, SAMPLING)).ids == ORACLE

    asyncio.run(run())


async def test_payload_damaged_every_time_ends_in_a_typed_error_that_names_it() -> None:
    def harm(_n: int, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 0x40]) if len(data) > 600 else data

    async with Trio(TrioOptions(harm=harm)) as trio:
        with pytest.raises(RetriesExhausted, match="frame"):
            await trio.generate(PROMPT, SAMPLING)


async def test_one_bad_line_among_many_good_requests() -> None:
    draw = random.Random(3)

    def harm(_n: int, data: bytes) -> bytes | None:
        return None if draw.random() < 0.02 else data

    async with Trio(TrioOptions(harm=harm, num_decode=2)) as trio:
        outcomes = await asyncio.gather(
            *(trio.generate(PROMPT[: 3 + i], SAMPLING) for i in range(20))
        )
        for i, outcome in enumerate(outcomes):
            assert outcome.ids == fake_tokens(PROMPT[: 3 + i], SAMPLING, 12)
        assert sum(outcome.timing.num_dispatches for outcome in outcomes) > 20
