"""Predicted costs as tables; choices that weigh caches against queues; the fleet's columns."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.types import Role, WorkerId, WorkerLimits, WorkerStatus
from router.costs import decode_parts, prefill_parts
from router.exposed import Exposed
from router.fleet import NOMINAL, Fleet, WorkerRef, WorkerView
from router.policy import Colocated, Demand, Placement, PolicyLimits, place
from router.route_policy import RoutePolicy

LIMITS = WorkerLimits(10_000, 1000, 100, 64, 320)
COST = StepCost(PrefillCost(1e-3, 1e-4, 1e-8), DecodeCost(5e-3, 1e-3, 1e-6))
DEMAND = Demand(num_context_tokens=1000, max_total_tokens=1100)


def view(worker_id: str, cost: StepCost = COST, **status: int) -> WorkerView:
    role = Role.PREFILL if worker_id.startswith("P") else Role.DECODE
    full = WorkerStatus(total_blocks=1000, free_blocks=1000, cost=cost)
    return WorkerView(
        WorkerRef(WorkerId(worker_id), "a", 1), role, LIMITS, 10,
        replace(full, **status),  # type: ignore[arg-type]
    )  # fmt: skip


def chosen(
    views: list[WorkerView],
    cached: list[int],
    policy: RoutePolicy = RoutePolicy.COST,
    turn: int = 0,
) -> tuple[str, str]:
    limits = PolicyLimits(dispatch_window_chunks=1e6, policy=policy)
    known = np.array(cached, dtype=float)
    decision = place(replace(DEMAND, turn=turn), Fleet.of(views), limits, cached=known)
    assert isinstance(decision, Placement)
    assert decision.decode is not None
    return decision.prefill.worker_id, decision.decode.worker_id


def test_the_published_vector_of_dynamo() -> None:
    """Ten blocks asked for by each; (hit, decode blocks) = (2, 10), (5, 5), (8, 9) cost 18, 10, 11
    blocks. There the request's own blocks count among the decode blocks once, as far as they are
    not shared: those already there are 2, 0 and 7."""
    block_s = 1e-3
    cost = StepCost(PrefillCost(0.0, block_s / 10, 0.0), DecodeCost(0.0, 0.0, block_s / 10))
    views = [
        view(f"D{number}", cost, running_tokens=10 * active)
        for number, active in enumerate((2, 0, 7))
    ]
    hits = np.array([20.0, 50.0, 80.0])
    columns = Fleet.of(views).columns
    prefill_s = prefill_parts(columns, 100, hits).total_s
    decode_s = decode_parts(columns, 100, 100, hits, 0.0).total_s
    shared_s = hits / 10 * block_s  # read by this sequence too, but kept once
    assert (prefill_s + decode_s - shared_s) / block_s == pytest.approx([18.0, 10.0, 11.0])
    limits = PolicyLimits(colocated=True)
    demand = Demand(num_context_tokens=100, max_total_tokens=100)
    assert place(demand, Fleet.of(views), limits, cached=hits) == Colocated(views[1].ref)


@pytest.mark.parametrize(
    ("queued", "cached", "expected"),
    [
        pytest.param((0, 0), (0, 500), "P1", id="a cached half"),
        pytest.param((0, 400), (0, 500), "P1", id="worth a queue shorter than it"),
        pytest.param((0, 600), (0, 500), "P0", id="but not a longer one"),
        pytest.param((0, 0), (0, 0), "P0", id="nothing known"),
        pytest.param((50, 0), (0, 0), "P1", id="load alone"),
    ],
)
def test_a_cache_is_weighed_against_a_queue(
    queued: tuple[int, int], cached: tuple[int, int], expected: str
) -> None:
    views = [view(f"P{i}", queued_tokens=queued[i]) for i in range(2)]
    assert chosen([*views, view("D0")], [*cached, 0])[0] == expected


@pytest.mark.parametrize(
    ("first", "second", "cached", "expected"),
    [
        ({"num_running": 8}, {}, (0, 0), "D1"),  # each of the eight would wait longer
        ({"num_running": 1, "running_tokens": 5000}, {"num_running": 1}, (0, 0), "D1"),
        ({"free_blocks": 101}, {}, (0, 0), "D1"),  # it would have to park
        ({}, {}, (0, 900), "D1"),  # nine tenths of the KV need not come over
        ({}, {"num_running": 20}, (0, 900), "D0"),
    ],
)
def test_decode_weighs_steps_blocks_and_kv(
    first: dict[str, int], second: dict[str, int], cached: tuple[int, int], expected: str
) -> None:
    prefill = replace(view("P0"), exposed=Exposed(0.002, 1e-5))
    views = [prefill, view("D0", **first), view("D1", **second)]
    assert chosen(views, [0, *cached])[1] == expected


def test_a_faster_card_takes_the_longer_queue() -> None:
    fast = StepCost(PrefillCost(1e-4, 1e-5, 0.0), COST.decode)
    assert (
        chosen([view("P0"), view("P1", fast, queued_tokens=2000), view("D0")], [0] * 3)[0] == "P1"
    )


def test_the_parts_are_those_of_step_cost() -> None:
    """The columns against the plain functions, worker by worker."""
    views = [view("P0", queued_tokens=250), view("P1")]
    parts = prefill_parts(Fleet.of(views).columns, 1000, np.array([0.0, 999.0]))
    assert parts.queue_s.tolist() == pytest.approx([3 * 1e-3 + 250 * 1e-4, 0.0])
    plain = [COST.prefill.seconds(0, 1000, 10), COST.prefill.seconds(990, 1000, 1)]
    assert parts.compute_s.tolist() == pytest.approx(plain)
    busy = view("D0", num_running=3, running_tokens=600)
    step = decode_parts(Fleet.of([busy]).columns, 1000, 1100, np.zeros(1), 0.0)
    assert step.step_s.tolist() == pytest.approx([COST.decode.seconds(4, 1600)])
    others_s = 3 * (COST.decode.seconds(4, 1600) - COST.decode.seconds(3, 600))
    assert step.others_s.tolist() == pytest.approx([others_s])


def test_who_has_measured_nothing_costs_what_others_do() -> None:
    columns = Fleet.of([view("P0"), view("P1", StepCost())]).columns
    assert columns.prefill_per_token_s.tolist() == [1e-4, 1e-4]
    columns = Fleet.of([view("P0", StepCost())]).columns
    assert columns.prefill_per_token_s.tolist() == [NOMINAL.prefill.per_token_s]


def test_a_fleet_that_is_renewed_is_as_one_made_anew() -> None:
    views = [view(name) for name in ("P0", "P1", "D0")]
    fleet = Fleet.of(views)
    for changed in (
        [views[0], view("P1", queued_tokens=7), views[2]],
        views[1:],
        [*views, *(view(f"D{number}", num_running=number) for number in range(1, 20))],
        [view("P1", num_running=3), *views[2:]],  # rows of before are not written into these
        [],
    ):
        fleet.refresh(changed)
        fleet.refresh(changed := [*changed[:-1], *(replace(each) for each in changed[-1:])])
        anew = Fleet.of(changed)
        assert fleet.rows == anew.rows
        assert fleet.rows_of == anew.rows_of
        assert np.array_equal(np.array(fleet.columns), np.array(anew.columns))
        assert (fleet.row_of, fleet.views) == (anew.row_of, anew.views)


def test_costs_filled_in_row_by_row_are_those_filled_in_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(1)
    costs = (StepCost(), COST, StepCost(prefill=COST.prefill), StepCost(decode=COST.decode))
    for _ in range(100):
        size = draw.randrange(1, 12)
        by_row, at_once = Fleet(), Fleet()
        views = [view(f"{draw.choice('PD')}{number}", StepCost()) for number in range(size)]
        for _ in range(6):
            position = draw.randrange(size)
            views[position] = view(
                views[position].ref.worker_id, draw.choice(costs), queued_tokens=draw.randrange(99)
            )
            by_row.refresh(views)
            monkeypatch.setattr("router.fleet.FEW_ROWS", 0)
            at_once.refresh(views)
            monkeypatch.undo()
            assert np.array(by_row.rows) == pytest.approx(np.array(at_once.rows), rel=1e-12)
            assert np.array_equal(np.array(by_row.columns).T, np.array(by_row.rows))
            assert np.array_equal(np.array(at_once.columns).T, np.array(at_once.rows))
            assert by_row.is_measured == at_once.is_measured


def test_turns_and_draws() -> None:
    views = [view("P0"), view("P1", queued_tokens=50), view("D0"), view("D1", free_blocks=500)]
    none = [0] * 4
    turns = [chosen(views, none, RoutePolicy.ROUND_ROBIN, turn) for turn in range(3)]
    assert turns == [("P0", "D0"), ("P1", "D1"), ("P0", "D0")]
    assert chosen(views, none, RoutePolicy.LEAST_LOADED) == ("P0", "D0")
    many = [view(f"P{number}", queued_tokens=number) for number in range(10)] + [view("D0")]
    drawn = [chosen(many, [0] * 11, RoutePolicy.POWER_OF_TWO, turn)[0] for turn in range(200)]
    assert set(drawn) == {f"P{number}" for number in range(9)}, "the worst is never the better one"


def test_a_session_keeps_its_workers_while_they_have_room() -> None:
    views = [view("P0"), view("P1", queued_tokens=900), view("D0"), view("D1", num_running=3)]
    kept = frozenset({WorkerId("P1"), WorkerId("D1")})
    demand = replace(DEMAND, prefer=kept)
    wide, narrow = PolicyLimits(dispatch_window_chunks=100), PolicyLimits()
    fleet = Fleet.of(views)
    assert place(demand, fleet, wide) == Placement(views[1].ref, views[3].ref)
    assert place(demand, fleet, narrow) == Placement(views[0].ref, views[3].ref)


def test_the_window_of_a_fast_worker_is_a_time() -> None:
    """Two chunks of work that are done before the router hears of it keep nobody from coming."""
    seconds_a_token = {"slow": 1e-4, "fast": 1e-6}
    limits = PolicyLimits(dispatch_window_s=0.01)
    for speed, expected in (("slow", False), ("fast", True)):
        cost = StepCost(PrefillCost(0.0, seconds_a_token[speed], 0.0), COST.decode)
        ahead = 3 * LIMITS.chunk_tokens
        fleet = Fleet.of([view("P0", cost, queued_tokens=ahead), view("D0", cost)])
        assert isinstance(place(DEMAND, fleet, limits), Placement) is expected, speed
        assert not isinstance(place(DEMAND, fleet, PolicyLimits()), Placement), "chunks alone"


def test_the_window_in_time_has_an_end() -> None:
    cost = StepCost(PrefillCost(0.0, 1e-6, 0.0), COST.decode)
    limits = PolicyLimits(dispatch_window_s=0.01)
    within, beyond = (
        Fleet.of([view("P0", cost, queued_tokens=tokens), view("D0", cost)])
        for tokens in (9_990, 10_010)
    )
    assert isinstance(place(DEMAND, within, limits), Placement)
    assert not isinstance(place(DEMAND, beyond, limits), Placement)
