"""How long a pair that could not move KV rests."""

from __future__ import annotations

from pdserve.types import WorkerId
from router.barred_pairs import BarredPairs

P1_D1 = (WorkerId("P1"), WorkerId("D1"))
P1_D2 = (WorkerId("P1"), WorkerId("D2"))


def test_a_bar_doubles_up_to_the_longest() -> None:
    bars, now_s = BarredPairs(1.0, 5.0), 100.0
    for length_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert bars.bar(P1_D1, now_s) == now_s + length_s
        assert bars.active(now_s + length_s - 0.1) == {P1_D1}
        now_s += length_s
        assert bars.active(now_s) == frozenset()


def test_requests_that_fail_together_count_once() -> None:
    bars = BarredPairs(1.0, 30.0)
    assert [bars.bar(P1_D1, now_s) for now_s in (10.0, 10.0, 10.9)] == [11.0, 11.0, 11.0]
    assert bars.bar(P1_D1, 11.0) == 13.0


def test_a_commit_clears_the_pair_alone() -> None:
    bars = BarredPairs(1.0, 30.0)
    bars.bar(P1_D1, 10.0)
    bars.bar(P1_D2, 10.0)
    bars.clear(P1_D1)
    bars.clear(P1_D1)
    assert bars.active(10.0) == {P1_D2}
    assert bars.bar(P1_D1, 10.0) == 11.0


def test_a_worker_that_is_gone_leaves_no_record() -> None:
    bars = BarredPairs(1.0, 30.0)
    bars.bar(P1_D1, 10.0)
    bars.bar(P1_D2, 10.0)
    bars.forget(WorkerId("D1"))
    assert bars.active(10.0) == {P1_D2}
    bars.forget(WorkerId("P1"))
    assert bars.active(10.0) == frozenset()
