"""Turns of tenants, what answers are expected to take, deadlines that cannot be met."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from unit.router.test_queue_and_admission import Item

from pdserve.errors import InvalidRequest, Overloaded
from pdserve.messages import Admitted
from pdserve.route_hints import RouteHints, as_metadata, read_hints
from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.types import Leg, RequestId, Role, WorkerId, WorkerLimits, WorkerStatus
from router.deadlines import least_service_s
from router.fleet import Fleet, WorkerRef, WorkerView
from router.growth import GrowthEstimate
from router.policy import Demand
from router.request_queue import RequestQueue
from support.router_bench import RouterBench

COST = StepCost(PrefillCost(0.0, 1e-3, 0.0), DecodeCost(0.01, 0.0, 0.0))


def dispatch(queue: RequestQueue[Item], num: int) -> list[str]:
    """Tenants of the next ones, each going at once."""
    order = []
    for _ in range(num):
        item = next(iter(queue))
        queue.remove(item)
        queue.charge(item)
        order.append(item.tenant)
    return order


def test_a_flood_of_one_tenant_does_not_hold_up_another() -> None:
    queue: RequestQueue[Item] = RequestQueue(1000)
    for arrival in range(100):
        queue.put_back(Item(arrival, tenant="flood"))
    assert dispatch(queue, 10) == ["flood"] * 10
    for arrival in range(100, 110):
        queue.put_back(Item(arrival, tenant="late"))
    assert Counter(dispatch(queue, 20)) == {"flood": 10, "late": 10}


def test_turns_go_by_tokens_not_by_requests() -> None:
    queue: RequestQueue[Item] = RequestQueue(1000)
    for arrival in range(40):
        queue.put_back(Item(arrival, tenant="long", service_tokens=300.0))
        queue.put_back(Item(1000 + arrival, tenant="short", service_tokens=100.0))
    assert Counter(dispatch(queue, 40)) == {"short": 30, "long": 10}


def test_the_look_ahead_is_what_dispatching_gives() -> None:
    """Iterating takes turns as if each went, and changes nothing."""
    queue: RequestQueue[Item] = RequestQueue(1000)
    for arrival in range(30):
        queue.put_back(Item(arrival, tenant="abc"[arrival % 3], service_tokens=10.0 + arrival))
    ahead = [item.tenant for item in queue]
    assert [item.tenant for item in queue] == ahead
    assert dispatch(queue, 30) == ahead
    assert len(queue) == 0


def test_priority_goes_before_turns() -> None:
    queue: RequestQueue[Item] = RequestQueue(10)
    queue.put_back(Item(1, tenant="a"))
    queue.put_back(Item(2, tenant="b", priority=-1))
    queue.put_back(Item(3, tenant="b", priority=-1))
    assert dispatch(queue, 3) == ["b", "b", "a"]


def test_nobody_saves_up_turns() -> None:
    queue: RequestQueue[Item] = RequestQueue(1000)
    queue.put_back(Item(0, tenant="rare"))
    dispatch(queue, 1)
    for arrival in range(1, 60):
        queue.put_back(Item(arrival, tenant="busy"))
    dispatch(queue, 30)
    for arrival in range(100, 120):
        queue.put_back(Item(arrival, tenant="rare"))
    assert Counter(dispatch(queue, 10)) == {"busy": 5, "rare": 5}


def test_growth_is_the_bound_until_it_is_learnt() -> None:
    growth = GrowthEstimate()
    for _ in range(7):
        growth.observe("a", 20)
    assert growth.expected("a", 500) == 500
    growth.observe("a", 20)
    assert growth.expected("a", 500) == 20
    assert growth.expected("a", 5) == 5
    assert growth.expected("b", 500) == 500
    for number in range(200):
        growth.observe("b", 10 + 20 * (number % 2))
    assert 30 <= growth.expected("b", 500) <= 50


def view(worker_id: str, cost: StepCost = COST) -> WorkerView:
    role = Role.PREFILL if worker_id.startswith("P") else Role.DECODE
    status = WorkerStatus(total_blocks=1000, free_blocks=1000, cost=cost)
    limits = WorkerLimits(9000, 1000, 256, 64, 320)
    return WorkerView(WorkerRef(WorkerId(worker_id), "a", 1), role, limits, 10, status)


def test_the_least_service() -> None:
    fleet = Fleet.of([view("P1"), view("D1")])
    demand = Demand(100, 1000, expected_total_tokens=111)
    assert least_service_s(demand, fleet, None) == pytest.approx(0.1 + 10 * 0.01)
    cached = np.array([50.0, 0.0])
    assert least_service_s(demand, fleet, cached) == pytest.approx(0.05 + 10 * 0.01)
    assert (
        least_service_s(demand, Fleet.of([view("P1", StepCost()), view("D1", StepCost())]), None)
        is None
    )


async def test_what_cannot_end_in_time_is_refused_and_not_computed() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        await prefill.report(cost=COST)
        await decode.report(cost=COST)
        reader = bench.start([1] * 100, max_tokens=21, timeout_s=0.25)  # 0.1 s + 19 * 0.01 s
        await prefill.report()
        assert isinstance(reader.error, Overloaded)
        assert reader.error.retry_after_s >= 1.0
        assert (prefill.inbox, decode.inbox) == ([], [])
        in_time = bench.start([1] * 100, max_tokens=21, timeout_s=0.35, request_id="in time")
        submit = await prefill.take_submit(Leg.PREFILL)
        assert submit.attempt.request.request_id == RequestId("in time")
        await prefill.report(Admitted(RequestId("in time"), 1, Leg.PREFILL))
        in_time.stream.cancel("enough")


def test_hints() -> None:
    headers = {"x-pdserve-tenant": "t", "x-pdserve-session": "s", "x-pdserve-explain": "1"}
    hints = RouteHints("t", "s", explain=True)
    assert read_hints(headers.get) == hints
    assert dict(as_metadata(hints)) == headers
    assert as_metadata(read_hints({}.get)) == ()
    by_key = read_hints({"authorization": "Bearer secret"}.get)
    assert by_key.tenant.startswith("key-")
    assert "secret" not in by_key.tenant
    assert by_key == read_hints({"authorization": "Bearer secret"}.get)
    with pytest.raises(InvalidRequest, match="x-pdserve-session"):
        replace(hints, session="x" * 129)
