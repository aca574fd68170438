"""Local or remote: the rule as a table, and the policy that applies it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.types import Role, WorkerId, WorkerLimits, WorkerStatus
from router.fleet import Fleet, WorkerRef, WorkerView
from router.local_prefill import LocalLimits, PrefillPlace, Where, local_reason
from router.policy import Colocated, Decision, Demand, Placement, PolicyLimits, Unplaced, Waiting
from router.policy import place as place_in

ADAPTIVE = LocalLimits(PrefillPlace.ADAPTIVE, max_tokens=256)
COST = StepCost(PrefillCost(1e-3, 1e-4, 0.0), DecodeCost(5e-3, 1e-3, 1e-6))


@pytest.mark.parametrize(
    ("num_tokens", "num_left", "local_s", "remote_s", "expected"),
    [
        (100, 100, 0.01, 0.02, Where.SHORT),
        (100, 100, 0.02, 0.02, None),  # equal: nobody is disturbed
        (257, 257, 0.01, 9.0, None),  # too long, whatever it costs elsewhere
        (256, 256, 0.01, 9.0, Where.SHORT),
        (4000, 200, 0.01, 0.02, Where.CACHED),
        (200, 100, 0.01, 0.02, Where.CACHED),
        (200, 101, 0.01, 0.02, Where.SHORT),
    ],
)
def test_the_rule(
    num_tokens: int, num_left: int, local_s: float, remote_s: float, expected: Where | None
) -> None:
    assert local_reason(num_tokens, num_left, local_s, remote_s, ADAPTIVE) is expected


def view(worker_id: str, **status: int) -> WorkerView:
    role = Role.PREFILL if worker_id.startswith("P") else Role.DECODE
    full = WorkerStatus(total_blocks=1000, free_blocks=1000, cost=COST)
    return WorkerView(
        WorkerRef(WorkerId(worker_id), "a", 1), role, WorkerLimits(9000, 1000, 256, 64, 320), 10,
        replace(full, **status),  # type: ignore[arg-type]
    )  # fmt: skip


def place(
    views: list[WorkerView], local: LocalLimits, num_tokens: int, cached: int = 0
) -> Decision:
    limits = PolicyLimits(dispatch_window_chunks=100, local=local)
    known = np.array([cached if each.role is Role.DECODE else 0 for each in views], dtype=float)
    demand = Demand(num_tokens, num_tokens + 50)
    return place_in(demand, Fleet.of(views), limits, cached=known)


@pytest.mark.parametrize(
    ("prefill", "decode", "num_tokens", "cached", "where"),
    [
        pytest.param({}, {}, 100, 0, Where.REMOTE, id="as fast there"),
        pytest.param({"queued_tokens": 500}, {}, 100, 0, Where.SHORT, id="a queue there"),
        pytest.param({"queued_tokens": 500}, {"num_running": 9}, 100, 0, Where.REMOTE, id="crowd"),
        pytest.param({"queued_tokens": 500}, {}, 1000, 0, Where.REMOTE, id="long"),
        pytest.param({}, {"num_running": 3}, 1000, 900, Where.CACHED, id="cached"),
        pytest.param({}, {"num_running": 30}, 1000, 900, Where.REMOTE, id="cached, crowd"),
    ],
)
def test_adaptive(
    prefill: dict[str, int], decode: dict[str, int], num_tokens: int, cached: int, where: Where
) -> None:
    decision = place([view("P1", **prefill), view("D1", **decode)], ADAPTIVE, num_tokens, cached)
    found = decision.where if isinstance(decision, Colocated) else Where.REMOTE
    assert (found, isinstance(decision, Placement)) == (where, where is Where.REMOTE)


def test_always() -> None:
    both = [view("P1", queued_tokens=5000), view("D1")]
    assert isinstance(place(both, LocalLimits(), 10), Placement)
    always = LocalLimits(PrefillPlace.LOCAL, max_tokens=1)
    decision = place(both, always, 1000)
    assert isinstance(decision, Colocated)
    assert decision.where is Where.BY_OPTION
    full = [view("P1"), view("D1", free_blocks=0)]
    assert place(full, always, 1000) == Unplaced(Waiting.DECODE_FULL)


def test_without_a_prefill_worker() -> None:
    alone = [view("D1")]
    for prefill_place in (PrefillPlace.REMOTE, PrefillPlace.ADAPTIVE):
        strict = LocalLimits(prefill_place)
        assert place(alone, strict, 10) == Unplaced(Waiting.NO_PREFILL_WORKER)
        decision = place(alone, replace(strict, is_strict=False), 1000)
        assert isinstance(decision, Colocated)
        assert decision.where is Where.NO_PREFILL_WORKER
