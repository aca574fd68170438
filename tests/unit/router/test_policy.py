"""The choice of workers as tables: what is known of them, what is needed, what comes out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest

from pdserve.types import Role, WorkerId, WorkerLimits, WorkerStatus
from router import policy
from router.policy import (
    Colocated,
    Decision,
    Demand,
    Fleet,
    Placement,
    PolicyLimits,
    Unplaced,
    Waiting,
    WorkerRef,
    WorkerView,
)

DISAGGREGATED = PolicyLimits(dispatch_window_chunks=2.0, hung_after_s=5.0)
COLOCATED = replace(DISAGGREGATED, colocated=True)
LIMITS = WorkerLimits(
    max_model_len=512, total_blocks=64, chunk_tokens=100, max_running=4, vocab_size=320
)
DEMAND = Demand(num_context_tokens=30, max_total_tokens=50)


def ref(worker_id: str) -> WorkerRef:
    return WorkerRef(WorkerId(worker_id), "a", 1)


def view(worker_id: str, **changes: object) -> WorkerView:
    """P… or D…; changes go to the view, the status or the limits, whichever has the field."""
    status = WorkerStatus(total_blocks=64, free_blocks=64)
    limits = LIMITS
    for name in list(changes):
        if hasattr(limits, name) and name != "total_blocks":
            limits = replace(limits, **{name: changes.pop(name)})  # type: ignore[arg-type]
        elif name != "draining" and hasattr(status, name):
            status = replace(status, **{name: changes.pop(name)})  # type: ignore[arg-type]
    role = Role.PREFILL if worker_id.startswith("P") else Role.DECODE
    base = WorkerView(ref(worker_id), role, limits, block_size=10, status=status)
    return replace(base, **changes)  # type: ignore[arg-type]


def place(
    demand: Demand,
    workers: list[WorkerView],
    limits: PolicyLimits,
    barred: Collection[tuple[WorkerId, WorkerId]] = (),
    cached: dict[str, int] | None = None,
) -> Decision:
    known = [(cached or {}).get(each.ref.worker_id, 0) for each in workers]
    return policy.place(demand, Fleet.of(workers), limits, barred, np.array(known, dtype=float))


def pair(prefill: str, decode: str) -> Placement:
    return Placement(ref(prefill), ref(decode))


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        pytest.param([view("P1"), view("D1")], pair("P1", "D1"), id="one pair"),
        pytest.param(
            [view("P1", queued_tokens=90), view("P2", queued_tokens=80), view("D1")],
            pair("P2", "D1"),
            id="least left to compute",
        ),
        pytest.param(
            [view("P1", queued_tokens=80), view("P2", queued_tokens=60, unseen_tokens=30)]
            + [view("D1")],
            pair("P1", "D1"),
            id="what was sent since counts",
        ),
        pytest.param(
            [view("P1"), view("D1", free_blocks=20), view("D2", free_blocks=30)],
            pair("P1", "D2"),
            id="most free blocks",
        ),
        pytest.param(
            [view("P1"), view("D1", reserved_blocks=40), view("D2", free_blocks=30)],
            pair("P1", "D2"),
            id="promised blocks are not free",
        ),
        pytest.param(
            [view("P1"), view("D1", unseen_blocks=40), view("D2", free_blocks=30)],
            pair("P1", "D2"),
            id="blocks booked since are not free",
        ),
        pytest.param(
            [view("P1", blocked=True), view("P2", queued_tokens=150), view("D1")],
            pair("P2", "D1"),
            id="busy until its next report",
        ),
        pytest.param(
            [view("P1", draining=True), view("P2", queued_tokens=150), view("D1")],
            pair("P2", "D1"),
            id="draining by our word",
        ),
        pytest.param(
            [view("P1"), view("D1", silent=True), view("D2", free_blocks=10)],
            pair("P1", "D2"),
            id="decode worker silent",
        ),
        pytest.param(
            [view("P1", silent=True), view("P2", queued_tokens=150), view("D1")],
            pair("P2", "D1"),
            id="prefill worker silent",
        ),
        pytest.param(
            [view("P1"), view("D1", status=WorkerStatus(free_blocks=64, draining=True))]
            + [view("D2", free_blocks=10)],
            pair("P1", "D2"),
            id="draining by its own word",
        ),
        pytest.param(
            [view("P1", step_age_s=5.1), view("P2", queued_tokens=150), view("D1")],
            pair("P2", "D1"),
            id="hung",
        ),
        pytest.param(
            [view("P1"), view("D1", num_running=2, num_queued=1, unseen_legs=1)]
            + [view("D2", free_blocks=10)],
            pair("P1", "D2"),
            id="no place among the legs",
        ),
        pytest.param(
            [view("P1", max_model_len=49), view("P2", queued_tokens=150), view("D1")],
            pair("P2", "D1"),
            id="too small for the request",
        ),
        pytest.param(
            [view("P1"), view("D1", max_model_len=49), view("D2", free_blocks=10)],
            pair("P1", "D2"),
            id="decode worker too small for the request",
        ),
    ],
)
def test_the_pair_chosen(workers: list[WorkerView], expected: Placement) -> None:
    assert place(DEMAND, workers, DISAGGREGATED) == expected


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        pytest.param([], Waiting.NO_PREFILL_WORKER, id="none"),
        pytest.param([view("D1")], Waiting.NO_PREFILL_WORKER, id="no P"),
        pytest.param([view("P1")], Waiting.NO_DECODE_WORKER, id="no D"),
        pytest.param([view("P1", draining=True), view("D1")], Waiting.NO_PREFILL_WORKER),
        pytest.param([view("P1"), view("D1", step_age_s=9.0)], Waiting.NO_DECODE_WORKER),
        pytest.param([view("P1"), view("D1", silent=True)], Waiting.NO_DECODE_WORKER),
        pytest.param([view("P1", max_model_len=49), view("D1")], Waiting.TOO_LARGE),
        pytest.param(
            [view("P1", queued_tokens=200), view("D1")], Waiting.PREFILL_BUSY, id="window shut"
        ),
        pytest.param([view("P1", free_blocks=2), view("D1")], Waiting.PREFILL_BUSY),
        pytest.param([view("P1", blocked=True), view("D1")], Waiting.PREFILL_BUSY),
        pytest.param(
            [view("P1"), view("D1", free_blocks=3)], Waiting.DECODE_FULL, id="context + 1 token"
        ),
        pytest.param([view("P1"), view("D1", blocked=True)], Waiting.DECODE_FULL),
        pytest.param([view("P1"), view("D1", num_parked=4)], Waiting.DECODE_FULL),
    ],
)
def test_why_nothing_was_chosen(workers: list[WorkerView], reason: Waiting) -> None:
    assert place(DEMAND, workers, DISAGGREGATED) == Unplaced(reason)


def test_the_window_lets_one_in_while_less_than_two_chunks_are_left() -> None:
    workers = [view("P1", queued_tokens=199), view("D1")]
    assert place(DEMAND, workers, DISAGGREGATED) == pair("P1", "D1")


def test_blocks_just_enough() -> None:
    workers = [view("P1", free_blocks=3), view("D1", free_blocks=4)]
    assert place(DEMAND, workers, DISAGGREGATED) == pair("P1", "D1")


def test_a_barred_pair_is_passed_over() -> None:
    workers = [view("P1"), view("P2", queued_tokens=10), view("D1"), view("D2", free_blocks=9)]
    barred = {(WorkerId("P1"), WorkerId("D1"))}
    assert place(DEMAND, workers, DISAGGREGATED, barred) == pair("P1", "D2")
    barred.add((WorkerId("P1"), WorkerId("D2")))
    assert place(DEMAND, workers, DISAGGREGATED, barred) == pair("P2", "D1")
    barred |= {(WorkerId("P2"), WorkerId("D1")), (WorkerId("P2"), WorkerId("D2"))}
    assert place(DEMAND, workers, DISAGGREGATED, barred) == Unplaced(Waiting.BARRED)


def test_workers_to_avoid_are_the_last_choice_but_a_choice() -> None:
    avoiding = replace(DEMAND, avoid=frozenset({WorkerId("P1"), WorkerId("D1")}))
    workers = [view("P1"), view("P2", queued_tokens=150), view("D1"), view("D2", free_blocks=9)]
    assert place(avoiding, workers, DISAGGREGATED) == pair("P2", "D2")
    full = [view("P1"), view("P2", queued_tokens=200), view("D1"), view("D2", free_blocks=0)]
    assert place(avoiding, full, DISAGGREGATED) == pair("P1", "D1")


def test_one_token_needs_no_decode_worker() -> None:
    demand = replace(DEMAND, needs_decode=False)
    assert place(demand, [view("P1")], DISAGGREGATED) == Placement(ref("P1"), None)


@pytest.mark.parametrize(
    "held_by",
    [view("P1", queued_tokens=999), view("P1", free_blocks=0), view("P1", draining=True)],
    ids=["busy", "full", "draining"],
)
def test_a_redeem_goes_to_the_worker_that_holds_the_kv(held_by: WorkerView) -> None:
    demand = replace(DEMAND, redeem_at=ref("P1"))
    workers = [held_by, view("P2"), view("D1")]
    assert place(demand, workers, DISAGGREGATED) == pair("P1", "D1")


def test_a_redeem_waits_for_a_decode_worker() -> None:
    demand = replace(DEMAND, redeem_at=ref("P1"))
    assert place(demand, [view("P1")], DISAGGREGATED) == Unplaced(Waiting.NO_DECODE_WORKER)
    full = [view("P1"), view("D1", free_blocks=0)]
    assert place(demand, full, DISAGGREGATED) == Unplaced(Waiting.DECODE_FULL)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([view("D1"), view("D2", queued_tokens=10)], Colocated(ref("D1"))),
        ([view("D1", free_blocks=20), view("D2")], Colocated(ref("D2"))),
        ([view("P1"), view("D1")], Colocated(ref("D1"))),
        ([view("P1")], Unplaced(Waiting.NO_DECODE_WORKER)),
        ([view("D1", max_model_len=10)], Unplaced(Waiting.TOO_LARGE)),
        ([view("D1", free_blocks=3)], Unplaced(Waiting.DECODE_FULL)),
        ([view("D1", queued_tokens=200)], Unplaced(Waiting.PREFILL_BUSY)),
    ],
)
def test_colocated_takes_one_decode_worker(
    workers: list[WorkerView], expected: Colocated | Unplaced
) -> None:
    assert place(DEMAND, workers, COLOCATED) == expected


def test_what_holds_up_others_and_what_starves() -> None:
    assert {w for w in Waiting if w.holds_up_others} == {Waiting.PREFILL_BUSY, Waiting.DECODE_FULL}
    assert {w for w in Waiting if w.is_starving} == {
        Waiting.NO_PREFILL_WORKER,
        Waiting.NO_DECODE_WORKER,
        Waiting.TOO_LARGE,
    }


SHARING = replace(DEMAND, share_at=ref("D1"), num_shared_tokens=30)


@pytest.mark.parametrize(
    ("demand", "workers", "expected"),
    [
        pytest.param(
            SHARING, [view("P1"), view("D1", free_blocks=12), view("D2")],
            Colocated(ref("D1"), 20), id="beside the other, but for the block it samples from",
        ),
        pytest.param(
            replace(SHARING, num_context_tokens=31), [view("P1"), view("D1")],
            Colocated(ref("D1"), 30), id="the whole prompt, where tokens follow it",
        ),
        pytest.param(
            SHARING, [view("P1"), view("D1", free_blocks=2), view("D2", free_blocks=1)],
            Colocated(ref("D1"), 20), id="needs its own blocks only",
        ),
        pytest.param(
            SHARING, [view("D1")], Colocated(ref("D1"), 20), id="needs no prefill worker",
        ),
        pytest.param(
            SHARING, [view("P1"), view("D1", free_blocks=1), view("D2")], pair("P1", "D2"),
            id="no room beside it",
        ),
        pytest.param(
            SHARING, [view("P1"), view("D1", blocked=True), view("D2")], pair("P1", "D2"),
            id="busy",
        ),
        pytest.param(
            SHARING, [view("P1"), view("D1", num_running=4), view("D2")], pair("P1", "D2"),
            id="no place among its legs",
        ),
        pytest.param(
            replace(SHARING, avoid=frozenset({WorkerId("D1")})),
            [view("P1"), view("D1"), view("D2", free_blocks=9)], pair("P1", "D2"),
            id="failed there",
        ),
        pytest.param(SHARING, [view("P1"), view("D2")], pair("P1", "D2"), id="it has left"),
        pytest.param(
            SHARING, [view("P1"), view("D1", draining=True), view("D2")], pair("P1", "D2"),
            id="it leaves",
        ),
        pytest.param(
            replace(SHARING, waits=True), [view("P1"), view("D1")],
            Unplaced(Waiting.OTHER_ANSWER), id="its KV is not there yet",
        ),
    ],
)  # fmt: skip
def test_another_answer_goes_where_its_prompt_is(
    demand: Demand, workers: list[WorkerView], expected: object
) -> None:
    assert place(demand, workers, DISAGGREGATED) == expected
    assert not Waiting.OTHER_ANSWER.holds_up_others
    assert not Waiting.OTHER_ANSWER.is_starving
