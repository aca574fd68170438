"""What is told of the ways of KV: transports met and used, bytes, the latest rate."""

from __future__ import annotations

import pytest

from pdserve.public import KvPairView
from pdserve.types import KvTiming, WorkerId
from router.kv_pairs import KvPairs

P1, P2, D1 = WorkerId("p1"), WorkerId("p2"), WorkerId("d1")


def timing(num_bytes: int, transfer_s: float, transport: str = "tcp") -> KvTiming:
    return KvTiming(transport, 8, num_bytes, transfer_s)


def test_a_pair_that_met_has_a_transport_and_no_rate() -> None:
    pairs = KvPairs()
    pairs.met((P1, D1), "shm")
    assert pairs.views() == (KvPairView(P1, D1, "shm"),)


def test_what_was_measured_stays_with_its_transport() -> None:
    pairs = KvPairs()
    pairs.met((P1, D1), "shm", 5e9, 4096)
    pairs.met((P1, D1), "shm")
    pairs.read((P1, D1), timing(1000, 1.0, "shm"))
    (view,) = pairs.views()
    assert (view.probe_bytes_per_s, view.probe_bytes) == (5e9, 4096)
    pairs.read((P1, D1), timing(1000, 1.0, "tcp"))
    (view,) = pairs.views()
    assert (view.probe_bytes_per_s, view.probe_bytes) == (0, 0)


def test_reads_are_counted_and_the_latest_weigh_most() -> None:
    pairs = KvPairs()
    pairs.met((P1, D1), "shm")
    pairs.read((P1, D1), timing(1000, 1.0))
    pairs.read((P2, D1), timing(10, 0.1))
    (view, other) = pairs.views()
    assert (view.transport, view.num_reads, view.num_bytes) == ("tcp", 1, 1000)
    assert view.read_bytes_per_s == pytest.approx(1000)
    assert other == KvPairView(P2, D1, "tcp", 1, 10, pytest.approx(100))
    for _ in range(60):
        pairs.read((P1, D1), timing(1000, 0.5))
    assert pairs.views()[0].read_bytes_per_s == pytest.approx(2000, rel=0.01)


def test_what_fell_back_is_counted_but_not_for_another_host() -> None:
    pairs = KvPairs()
    for passed_over in ("", "shm", "shm,tcp", "tcp"):
        pairs.read((P1, D1), KvTiming("grpc", 8, 1000, 1.0, passed_over=passed_over))
    assert (pairs.views()[0].num_reads, pairs.views()[0].num_fallbacks) == (4, 2)


def test_a_read_of_nothing_changes_no_rate() -> None:
    """All of it was there already: no byte, no time."""
    pairs = KvPairs()
    pairs.read((P1, D1), timing(0, 0.0))
    assert pairs.views()[0].read_bytes_per_s == 0
    pairs.read((P1, D1), timing(1000, 1.0))
    pairs.read((P1, D1), timing(0, 0.0))
    assert pairs.views()[0].read_bytes_per_s == pytest.approx(1000)
    assert pairs.views()[0].num_reads == 3


def test_who_leaves_takes_its_pairs_along() -> None:
    pairs = KvPairs()
    pairs.met((P1, D1), "shm")
    pairs.met((P2, D1), "shm")
    pairs.forget(P1)
    assert [view.prefill_worker for view in pairs.views()] == [P2]
    pairs.forget(D1)
    assert pairs.views() == ()
