"""What workers tell of their caches, what the router expects of its own Submits, and gaps."""

from __future__ import annotations

import numpy as np

from pdserve.messages import CacheChanges, ResendCache
from pdserve.types import Leg, RequestId, Role, WorkerId
from router.bookings import LegKey
from router.fleet import WorkerRef
from router.known_caches import KnownCaches
from router.prefix_index import Hashes
from support.router_bench import RouterBench

REF = WorkerRef(WorkerId("P1"), "a", 1)
CHAIN: Hashes = np.arange(1, 9, dtype=np.uint64)


def leg(name: str) -> LegKey:
    return LegKey(RequestId(name), 1, Leg.PREFILL)


def told(
    seq: int, stored: Hashes, evicted: Hashes = CHAIN[:0], *, reset: bool = False
) -> CacheChanges:
    return CacheChanges(seq, stored.tobytes(), evicted.tobytes(), reset)


def joined() -> KnownCaches:
    caches = KnownCaches(1024)
    caches.join(REF)
    assert caches.changed(REF, told(1, CHAIN[:0], reset=True))
    return caches


def test_stored_and_evicted() -> None:
    caches = joined()
    assert caches.changed(REF, told(2, CHAIN))
    assert caches.index.depths(CHAIN).tolist() == [8]
    assert caches.changed(REF, told(3, CHAIN[:0], CHAIN[5:]))
    assert caches.index.depths(CHAIN).tolist() == [5]
    caches.leave(REF)
    assert caches.index.num_blocks == 0


def test_a_gap_forgets_until_all_is_told_again() -> None:
    caches = joined()
    assert caches.changed(REF, told(2, CHAIN))
    assert not caches.changed(REF, told(4, CHAIN[:0], CHAIN[7:]))
    assert caches.index.depths(CHAIN).tolist() == [0]
    assert caches.changed(REF, told(5, CHAIN)), "one request is enough"
    assert caches.index.depths(CHAIN).tolist() == [0], "who knows what was evicted"
    assert caches.changed(REF, told(6, CHAIN[:3], reset=True))
    assert caches.changed(REF, told(7, CHAIN[3:4]))
    assert caches.index.depths(CHAIN).tolist() == [4]


def test_what_was_asked_for_counts_until_the_leg_ends_without() -> None:
    caches = joined()
    caches.expect(REF, leg("a"), CHAIN)
    assert caches.index.depths(CHAIN).tolist() == [8]
    assert caches.num_known(REF, CHAIN) == 0
    caches.changed(REF, told(2, CHAIN[:3]))
    assert caches.num_known(REF, CHAIN) == 3
    caches.settle(REF, leg("a"))
    assert caches.index.depths(CHAIN).tolist() == [3]
    caches.settle(REF, leg("a"))
    assert caches.index.depths(CHAIN).tolist() == [3]


def test_what_another_leg_needs_too_is_expected_of_that_one() -> None:
    """Else a gap: the blocks that the other one brings lie behind those that did not come."""
    caches = joined()
    caches.changed(REF, told(2, CHAIN[:2]))
    branch = np.append(CHAIN[:3], np.arange(101, 104, dtype=np.uint64))
    caches.expect(REF, leg("a"), CHAIN[:5])
    caches.expect(REF, leg("branch"), branch)
    caches.expect(REF, leg("b"), CHAIN)
    caches.expect(REF, leg("short"), CHAIN[:4])
    caches.settle(REF, leg("a"))
    for chain in (CHAIN, branch):
        assert caches.index.walk(chain).tolist() == [len(chain)]
        assert caches.num_known(REF, chain) == 2
    caches.settle(REF, leg("b"))
    assert caches.index.walk(CHAIN).tolist() == caches.index.depths(CHAIN).tolist() == [4]
    caches.settle(REF, leg("short"))
    assert caches.index.walk(CHAIN).tolist() == caches.index.depths(CHAIN).tolist() == [3]
    assert caches.index.walk(branch).tolist() == [6]
    caches.settle(REF, leg("branch"))
    assert caches.index.walk(branch).tolist() == [2]
    assert caches.index.num_blocks == 2


def test_what_was_expected_is_told_with_more_and_evicted_again() -> None:
    caches = joined()
    caches.expect(REF, leg("a"), CHAIN[:4])
    assert caches.changed(REF, told(2, CHAIN[:2])), "all of it expected"
    assert caches.changed(REF, told(3, CHAIN[2:6])), "half of it expected"
    caches.settle(REF, leg("a"))
    assert caches.num_known(REF, CHAIN) == 6
    assert caches.index.depths(CHAIN).tolist() == [6]
    assert caches.changed(REF, told(4, CHAIN[:0], CHAIN[1:6]))
    assert caches.num_known(REF, CHAIN) == 1
    assert caches.changed(REF, told(5, CHAIN[1:2])), "not expected any more, so stored anew"
    assert caches.num_known(REF, CHAIN) == 2


def test_a_reset_keeps_what_is_expected() -> None:
    caches = joined()
    caches.expect(REF, leg("a"), CHAIN)
    caches.changed(REF, told(2, CHAIN[:2], reset=True))
    assert caches.index.depths(CHAIN).tolist() == [8]
    assert caches.num_known(REF, CHAIN) == 2


def test_of_a_worker_that_tells_nothing_nothing_is_expected() -> None:
    caches = KnownCaches(1024)
    caches.join(REF)
    caches.expect(REF, leg("a"), CHAIN)
    assert caches.index.depths(CHAIN).tolist() == [0]


async def test_a_worker_is_asked_to_tell_all_again() -> None:
    async with RouterBench() as bench:
        prefill = await bench.join("P1", Role.PREFILL)
        await prefill.report_cache(told(1, CHAIN, reset=True))
        assert prefill.inbox == []
        await prefill.report_cache(told(3, CHAIN))
        prefill.take(ResendCache)
