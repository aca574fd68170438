"""Chunk cuts and the sharing of a step's token budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.chunking import ChunkRequest, next_chunk_len, plan_chunks


@pytest.mark.parametrize(
    ("num_computed", "num_total", "expected"),
    [
        (0, 1, 1),
        (0, 7, 7),
        (0, 8, 8),
        (0, 9, 8),
        (8, 9, 1),
        (8, 24, 8),
        (5, 24, 3),  # from the middle up to the next multiple, never past it
        (5, 7, 2),
        (9, 9, 0),
        (16, 16, 0),
    ],
)
def test_a_chunk_ends_at_a_multiple_or_at_the_end(
    num_computed: int, num_total: int, expected: int
) -> None:
    assert next_chunk_len(num_computed, num_total, 8) == expected


@given(st.integers(1, 500), st.integers(1, 64), st.integers(0, 499))
def test_cuts_do_not_depend_on_where_one_starts(total: int, chunk: int, start: int) -> None:
    position = min(start, total)
    while num_tokens := next_chunk_len(position, total, chunk):
        assert num_tokens <= chunk
        position += num_tokens
        assert position == total or position % chunk == 0
    assert position == total


@pytest.mark.parametrize(
    ("waiting", "budget", "expected"),
    [
        ([], 16, []),
        ([(0, 8)], 16, [8]),
        ([(0, 8), (0, 8)], 16, [8, 8]),
        ([(0, 8), (0, 8), (0, 1)], 16, [8, 8, 0]),
        ([(0, 8), (0, 3), (0, 5)], 16, [8, 3, 5]),
        ([(0, 20), (0, 3)], 11, [8, 3]),  # one chunk of a sequence a step
        ([(0, 8)], 3, [8]),  # the first one goes whole whatever the budget
        ([(0, 8)], -2, [8]),
        ([(0, 8), (0, 8)], 12, [8, 0]),  # never shortened
        ([(0, 6), (0, 8), (0, 2)], 8, [6, 0, 0]),  # nobody overtakes
        ([(16, 19), (8, 30)], 16, [3, 8]),
    ],
)
def test_plan(waiting: list[tuple[int, int]], budget: int, expected: list[int]) -> None:
    assert plan_chunks([ChunkRequest(*each) for each in waiting], budget, 8) == expected
