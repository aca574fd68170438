"""Which prompts get a chunk: priority, then arrival, within the budget."""

from __future__ import annotations

import pytest

from prefill_worker.scheduler import PlannedChunk, PromptView, plan_prefill


@pytest.mark.parametrize(
    ("views", "budget", "expected"),
    [
        ([], 8, []),
        ([PromptView(0, 0, 0, 20)], 8, [(0, 8)]),
        ([PromptView(0, 0, 16, 20)], 8, [(0, 4)]),
        # arrival decides among equals, not the place in the list
        ([PromptView(0, 5, 0, 3), PromptView(0, 2, 0, 4)], 8, [(1, 4), (0, 3)]),
        # a lower priority value goes first although it came later and the other is under way
        ([PromptView(1, 0, 8, 20), PromptView(0, 1, 0, 20)], 8, [(1, 8)]),
        ([PromptView(1, 0, 8, 20), PromptView(0, 1, 0, 20)], 16, [(1, 8), (0, 8)]),
        # nobody overtakes the first that does not fit
        ([PromptView(0, 0, 0, 6), PromptView(0, 1, 0, 6), PromptView(0, 2, 0, 2)], 8, [(0, 6)]),
        # the first goes even without budget
        ([PromptView(0, 0, 0, 6)], 0, [(0, 6)]),
    ],
)
def test_plan(views: list[PromptView], budget: int, expected: list[tuple[int, int]]) -> None:
    planned = plan_prefill(views, budget_tokens=budget, chunk_tokens=8)
    assert planned == [PlannedChunk(*each) for each in expected]
