"""The choice among a few workers against its plain twin, which looks at all of them at once."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.types import Role, WorkerId, WorkerLimits, WorkerStatus
from router.exposed import Exposed
from router.few_workers import MAX_WORKERS, place_among_few
from router.fleet import Fleet, WorkerRef, WorkerView
from router.local_prefill import LocalLimits, PrefillPlace
from router.placement import Demand, Placement, PolicyLimits
from router.policy import NO_PAIRS, place, place_among_many
from router.route_policy import RoutePolicy

LIMITS = PolicyLimits(dispatch_window_chunks=2.0, dispatch_window_s=0.04)


def some_worker(number: int, draw: random.Random) -> WorkerView:
    cost = StepCost(
        PrefillCost(draw.choice([1e-3, 3e-3]), draw.choice([1e-4, 7e-5]), draw.choice([0.0, 1e-9])),
        DecodeCost(5e-3, draw.choice([5e-4, 3e-4]), 1e-7),
    )
    status = WorkerStatus(
        total_blocks=200, free_blocks=draw.choice([20, 90, 200]), num_running=draw.randrange(9),
        queued_tokens=draw.choice([0, 0, 100, 390, 500]), running_tokens=draw.choice([0, 700]),
        step_age_s=draw.choice([0.0, 0.0, 0.0, 9.0]), cost=draw.choice([cost, cost, StepCost()]),
    )  # fmt: skip
    return WorkerView(
        WorkerRef(WorkerId(f"w{number}"), "a", number), draw.choice(list(Role)),
        WorkerLimits(draw.choice([900, 2000]), 200, 100, 8, 320), draw.choice([8, 16]), status,
        unseen_blocks=draw.choice([0, 0, 5]), blocked=draw.random() < 0.1,
        draining=draw.random() < 0.1, silent=draw.random() < 0.1,
        exposed=draw.choice([Exposed(), Exposed(0.002, 1e-5)]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_as_the_plain_twin(seed: int) -> None:
    draw, num_placed = random.Random(seed), 0
    for _ in range(60):
        views = [some_worker(each, draw) for each in range(draw.randrange(1, MAX_WORKERS + 1))]
        fleet = Fleet.of(views)
        num_tokens = draw.choice([1, 16, 300, 1000])
        total = num_tokens + draw.choice([1, 100])
        demand = Demand(
            num_tokens, total, needs_decode=draw.random() < 0.9,
            expected_total_tokens=draw.choice([0, num_tokens + 1]),
        )  # fmt: skip
        cached = np.array([8.0 * draw.randrange(num_tokens // 8 + 1) for _ in views])
        found = place_among_few(demand, fleet, LIMITS, cached)
        plain = place_among_many(demand, fleet, LIMITS, NO_PAIRS, cached)
        assert found == (plain if isinstance(plain, Placement) else None)
        assert place(demand, fleet, LIMITS, cached=cached) == plain
        num_placed += found is not None
    assert num_placed > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"waits": True}, {"avoid": frozenset({"w1"})}, {"prefer": frozenset({"w1"})},
        {"share_at": WorkerRef(WorkerId("w1"), "a", 1)},
        {"redeem_at": WorkerRef(WorkerId("w1"), "a", 1)},
    ],
)  # fmt: skip
def test_what_is_unusual_is_left_to_the_other(changes: dict[str, object]) -> None:
    fleet = Fleet.of([idle("w0", Role.PREFILL), idle("w1", Role.DECODE)])
    demand = Demand(10, 20)
    assert place_among_few(demand, fleet, LIMITS, np.zeros(2)) is not None
    unusual = replace(demand, **changes)  # type: ignore[arg-type]
    assert place_among_few(unusual, fleet, LIMITS, np.zeros(2)) is None
    for limits in (
        replace(LIMITS, colocated=True),
        replace(LIMITS, policy=RoutePolicy.LEAST_LOADED),
        replace(LIMITS, local=LocalLimits(PrefillPlace.ADAPTIVE)),
    ):
        assert place_among_few(demand, fleet, limits, np.zeros(2)) is None


def idle(worker_id: str, role: Role) -> WorkerView:
    return WorkerView(
        WorkerRef(WorkerId(worker_id), "a", 1), role, WorkerLimits(2000, 200, 100, 8, 320), 16,
        WorkerStatus(total_blocks=200, free_blocks=200),
    )  # fmt: skip
