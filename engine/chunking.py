"""How a prompt is cut into prefill chunks, and which chunks share a step. Pure functions.

Cuts lie at fixed multiples of ``chunk_tokens``, counted from the start of the sequence, whatever
else is in the batch: a position is therefore always computed in a run of the same shape, which
batch-invariant kernels need to give the same bits in every mode. Chunked prefill and its fusion
with decode steps: Sarathi-Serve (Agrawal et al., OSDI 2024).

Knows neither priorities (the rooms' schedulers order what they pass in) nor blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """A sequence that waits for prefill: ``num_computed < num_total`` tokens have KV."""

    num_computed: int
    num_total: int


def next_chunk_len(num_computed: int, num_total: int, chunk_tokens: int) -> int:
    """Tokens up to the next multiple of ``chunk_tokens`` or the end; 0 when all are computed."""
    next_cut = (num_computed // chunk_tokens + 1) * chunk_tokens
    return min(next_cut, num_total) - num_computed


def plan_chunks(
    waiting: Sequence[ChunkRequest], budget_tokens: int, chunk_tokens: int
) -> list[int]:
    """Tokens of each sequence in this step, in the order given: at most one chunk each.

    A chunk is never shortened to fit. The first one goes whatever the budget (no starvation);
    from the first one that does not fit on nobody goes, so that short prompts do not overtake.
    """
    planned = [0] * len(waiting)
    left = budget_tokens
    for index, request in enumerate(waiting):
        num_tokens = next_chunk_len(request.num_computed, request.num_total, chunk_tokens)
        if index > 0 and num_tokens > left:
            break
        planned[index] = num_tokens
        left -= num_tokens
    return planned
