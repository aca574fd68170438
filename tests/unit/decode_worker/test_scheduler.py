"""Decisions of a decode step, as tables, and a long random run against the block arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decode_worker.scheduler import Chunk, SequenceView, Snapshot, StepDecision, plan_step

EMPTY = Snapshot((), (), (), free_blocks=8, block_size=4, chunk_tokens=8, step_tokens=0)


def running(order: int, num_tokens: int, num_blocks: int | None = None) -> SequenceView:
    blocks = -(-num_tokens // 4) if num_blocks is None else num_blocks
    return SequenceView(order, num_tokens, num_tokens - 1, blocks)


def test_nothing_to_do() -> None:
    assert plan_step(EMPTY) == StepDecision((), (), (), (), ())


def test_running_ones_decode_in_order_of_admission() -> None:
    decision = plan_step(replace(EMPTY, running=(running(2, 3), running(0, 5), running(1, 2))))
    assert decision.decode == (0, 1, 2)
    assert decision.park == decision.grow == ()


def test_a_sequence_at_its_block_edge_grows() -> None:
    decision = plan_step(replace(EMPTY, running=(running(0, 5, 1), running(1, 4))))
    assert decision.grow == (0,)


def test_the_youngest_gives_way_when_no_block_is_free() -> None:
    snapshot = replace(
        EMPTY, running=(running(0, 5, 1), running(1, 4), running(2, 9)), free_blocks=0
    )
    decision = plan_step(snapshot)
    assert decision.park == (2,)
    assert decision.grow == (0,)
    assert decision.decode == (0, 1)


def test_the_youngest_gives_way_to_nobody_but_itself() -> None:
    snapshot = replace(EMPTY, running=(running(0, 4), running(1, 5, 1)), free_blocks=0)
    decision = plan_step(snapshot)
    assert decision.park == (1,)
    assert decision.decode == (0,)


def test_parked_come_back_oldest_first_and_leave_growth_room() -> None:
    parked = (SequenceView(3, 8, 7, 0), SequenceView(2, 8, 7, 0))
    decision = plan_step(replace(EMPTY, running=(running(0, 4),), parked=parked, free_blocks=3))
    assert decision.restore == (2,)
    assert decision.decode == (0, 2)


def test_the_oldest_parked_is_never_overtaken_by_a_smaller_one() -> None:
    parked = (SequenceView(2, 40, 39, 0), SequenceView(3, 4, 3, 0))
    assert plan_step(replace(EMPTY, parked=parked)).restore == ()


def test_alone_the_parked_one_needs_no_growth_room() -> None:
    decision = plan_step(replace(EMPTY, parked=(SequenceView(0, 32, 31, 0),)))
    assert decision.restore == (0,)


def test_chunks_fill_the_budget_beside_the_decode_rows() -> None:
    prefilling = (SequenceView(5, 20, 8, 5), SequenceView(6, 3, 0, 1))
    snapshot = replace(EMPTY, running=(running(0, 4),), prefilling=prefilling)
    assert plan_step(snapshot).chunks == (Chunk(5, 8),)
    assert plan_step(replace(snapshot, step_tokens=12)).chunks == (Chunk(5, 8), Chunk(6, 3))


@pytest.mark.parametrize("step_tokens", [0, 1, 4])
def test_a_prompt_never_starves_behind_decode_rows(step_tokens: int) -> None:
    snapshot = replace(
        EMPTY,
        running=tuple(running(i, 2) for i in range(4)),
        prefilling=(SequenceView(9, 6, 0, 2),),
        step_tokens=step_tokens,
    )
    assert plan_step(snapshot).chunks == (Chunk(9, 6),)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=8),
    total_blocks=st.integers(12, 20),
)
def test_random_runs_always_finish_and_never_overdraw(
    lengths: list[tuple[int, int]], total_blocks: int
) -> None:
    """Every (context, to generate) ends, oldest progress guaranteed, blocks never negative."""
    free = total_blocks
    state = {i: [context, context + new] for i, (context, new) in enumerate(lengths)}
    held: dict[int, int] = {}
    waiting = list(state)
    parked: set[int] = set()
    for _ in range(2000):
        while waiting:
            need = -(-state[waiting[0]][0] // 4)
            if parked or need + len(held) > free:
                break
            held[waiting.pop(0)] = need
            free -= need
        views = tuple(
            SequenceView(i, state[i][0], state[i][0] - 1, held.get(i, 0)) for i in sorted(held)
        )
        parked_views = tuple(SequenceView(i, state[i][0], state[i][0] - 1, 0) for i in parked)
        decision = plan_step(replace(EMPTY, running=views, parked=parked_views, free_blocks=free))
        for i in decision.park:
            free += held.pop(i)
            parked.add(i)
        for i in decision.restore:
            parked.discard(i)
            held[i] = -(-state[i][0] // 4)
            free -= held[i]
        for i in decision.grow:
            free -= 1
            held[i] += 1
        assert free >= 0
        for i in decision.decode:
            assert held[i] * 4 >= state[i][0]
            state[i][0] += 1
            if state[i][0] >= state[i][1]:
                free += held.pop(i)
                del state[i]
        if not state:
            break
    assert not state and free == total_blocks
