"""Drives a step runner by hand: prompts in, tokens out, chunk lengths and batches of any choice.

Stands in for the planners of both rooms where a test is about the engine's step alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from engine.block_pool import BlockPool
from engine.sequence import Sequence
from engine.step import SampledToken, StepRow, StepRunner
from pdserve.types import Attempt, KVLayout, Request, RequestId, SamplingParams


class StepDriver:
    """One runner with a block pool of its own."""

    def __init__(self, runner: StepRunner) -> None:
        self.runner = runner
        self.pool = BlockPool(runner.buffers.num_blocks)

    def open(
        self,
        prompt_ids: Iterable[int],
        sampling: SamplingParams | None = None,
        forced_ids: tuple[int, ...] = (),
    ) -> Sequence:
        return open_sequence(self.pool, self.runner.layout, prompt_ids, sampling, forced_ids)

    async def prefill(self, sequence: Sequence, chunk_tokens: int) -> SampledToken:
        """All known tokens, chunk by chunk; the sampled token is appended."""
        token: SampledToken | None = None
        while sequence.num_uncomputed:
            count = min(chunk_tokens, sequence.num_uncomputed)
            samples = count == sequence.num_uncomputed
            row = StepRow(sequence, sequence.num_computed, count, samples)
            (token,) = await self.step([row])
            if samples:
                break
        assert token is not None
        return token

    async def decode(self, sequences: SequenceOf[Sequence]) -> list[SampledToken]:
        """One step over all of them, one token each."""
        rows = [StepRow(s, s.num_computed, 1, samples=True) for s in sequences]
        tokens = await self.step(rows)
        return [token for token in tokens if token is not None]

    async def step(self, rows: SequenceOf[StepRow]) -> list[SampledToken | None]:
        tokens = await self.runner.run(rows)
        for row, token in zip(rows, tokens, strict=True):
            row.sequence.num_computed = row.end
            if token is not None:
                row.sequence.append(token.token_id)
        return tokens

    async def generate(
        self, prompt_ids: Iterable[int], sampling: SamplingParams, chunk_tokens: int = 64
    ) -> list[SampledToken]:
        """Alone, until max_tokens; the blocks are given back."""
        sequence = self.open(prompt_ids, sampling)
        tokens = [await self.prefill(sequence, chunk_tokens)]
        while len(tokens) < sampling.max_tokens:
            tokens += await self.decode([sequence])
        sequence.lease.release()
        return tokens

    def kv_bytes(self, sequence: Sequence) -> bytes:
        """KV of the computed tokens, position by position, whatever the block size."""
        layout = self.runner.layout
        slot = layout.head_dim * layout.dtype_bytes
        planes = layout.block_bytes // (layout.block_size * slot)
        views = [self.runner.buffers.view(block) for block in sequence.lease.block_ids]
        parts = []
        for position in range(sequence.num_computed):
            view = views[position // layout.block_size]
            for plane in range(planes):
                start = (plane * layout.block_size + position % layout.block_size) * slot
                parts.append(bytes(view[start : start + slot]))
        return b"".join(parts)


def open_sequence(
    pool: BlockPool,
    layout: KVLayout,
    prompt_ids: Iterable[int],
    sampling: SamplingParams | None = None,
    forced_ids: tuple[int, ...] = (),
) -> Sequence:
    """A sequence with blocks for all it may become; whoever opens it releases its lease."""
    request = Request(RequestId("test"), tuple(prompt_ids), sampling or SamplingParams())
    attempt = Attempt(request, epoch=0, forced_ids=forced_ids)
    lease = pool.lease(layout.num_blocks(attempt.max_total_tokens))
    assert lease is not None
    return Sequence(attempt, lease)
