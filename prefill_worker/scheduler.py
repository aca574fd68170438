"""Which prompts get a chunk in the next step. Pure: views in, token counts out.

Lower priority value first, then first come, first served; the step is filled by
engine/chunking.py. Knows neither tickets nor blocks: a prompt has all its blocks before it is
ever shown here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.chunking import ChunkRequest, plan_chunks


@dataclass(frozen=True, slots=True)
class PromptView:
    """A prompt that may compute now. ``order`` is the number of its admission."""

    priority: int
    order: int
    num_computed: int
    num_total: int


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """``index`` into the views that were passed in."""

    index: int
    num_tokens: int


def plan_prefill(
    views: Sequence[PromptView], *, budget_tokens: int, chunk_tokens: int
) -> list[PlannedChunk]:
    """Chunks of one step, most urgent first; at least one if there is any view."""
    ranked = sorted(range(len(views)), key=lambda i: (views[i].priority, views[i].order))
    requests = [ChunkRequest(views[i].num_computed, views[i].num_total) for i in ranked]
    planned = plan_chunks(requests, budget_tokens, chunk_tokens)
    return [
        PlannedChunk(index, num_tokens)
        for index, num_tokens in zip(ranked, planned, strict=True)
        if num_tokens > 0
    ]
