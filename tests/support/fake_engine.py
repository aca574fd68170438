"""Parts of an engine for tests: sequences, scripted runners, and one sequence run to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf

from engine.block_pool import BlockPool
from engine.chunking import next_chunk_len
from engine.sequence import Sequence, finish_reason
from engine.step import SampledToken, StepRow, StepRunner
from pdserve.types import Attempt, Request, RequestId, SamplingParams


def make_attempt(
    prompt_ids: SequenceOf[int],
    *,
    request_id: str = "r1",
    epoch: int = 1,
    forced_ids: SequenceOf[int] = (),
    priority: int = 0,
    sampling: SamplingParams | None = None,
    cache_salt: str = "",
) -> Attempt:
    request = Request(
        RequestId(request_id), tuple(prompt_ids), sampling or SamplingParams(), priority,
        cache_salt=cache_salt,
    )  # fmt: skip
    return Attempt(request, epoch, tuple(forced_ids))


def make_sequence(
    pool: BlockPool, num_tokens: int, *, block_size: int = 16, request_id: str = "r1"
) -> Sequence:
    """A sequence of ``num_tokens`` prompt tokens with blocks for all of them."""
    lease = pool.lease(-(-num_tokens // block_size))
    assert lease is not None
    attempt = make_attempt([65 + i % 26 for i in range(num_tokens)], request_id=request_id)
    return Sequence(attempt, lease)


def prompt_row(sequence: Sequence, num_tokens: int | None = None) -> StepRow:
    """The next ``num_tokens`` (default: all that is left); samples if that reaches the end."""
    count = sequence.num_uncomputed if num_tokens is None else num_tokens
    return StepRow(sequence, sequence.num_computed, count, samples=count == sequence.num_uncomputed)


class ScriptedRunner:
    """Each ``run`` waits for its turn: the test lets it return, raise, or sees it wait.

    Only the part of ``StepRunner`` that the loop uses.
    """

    def __init__(self) -> None:
        self.calls: list[list[StepRow]] = []
        self.entered = asyncio.Event()
        self._outcomes: asyncio.Queue[list[SampledToken | None] | BaseException] = asyncio.Queue()

    def finish(self, outcome: list[SampledToken | None] | BaseException) -> None:
        """How the next ``run`` (running or to come) ends."""
        self._outcomes.put_nowait(outcome)

    async def run(self, rows: SequenceOf[StepRow]) -> list[SampledToken | None]:
        self.calls.append(list(rows))
        self.entered.set()
        outcome = await self._outcomes.get()
        self.entered.clear()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def generate(
    runner: StepRunner,
    pool: BlockPool,
    attempt: Attempt,
    *,
    chunk_tokens: int,
    max_model_len: int = 8192,
) -> list[int]:
    """Tokens sampled for one attempt by one loop over the runner, alone; the pool is full after."""
    block_size = runner.layout.block_size
    lease = pool.lease(-(-attempt.num_context_tokens // block_size))
    assert lease is not None
    sequence = Sequence(attempt, lease)
    sampled: list[int] = []
    try:
        while True:
            num_tokens = next_chunk_len(
                sequence.num_computed, len(sequence.token_ids), chunk_tokens
            )
            if lease.num_blocks * block_size < sequence.num_computed + num_tokens:
                assert lease.extend(1)
            (token,) = await runner.run([prompt_row(sequence, num_tokens)])
            sequence.num_computed += num_tokens
            if token is None:
                continue
            sequence.append(token.token_id)
            sampled.append(token.token_id)
            if finish_reason(sequence, token.token_id, runner.eos_token_ids, max_model_len):
                return sampled
    finally:
        lease.release()
