"""The block pool against a naive model: random leases, growth, pins and releases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.block_pool import BlockLease, BlockPool

NUM_BLOCKS = 12


class NaiveLease:
    """Blocks of a lease as a set, with its pins counted by hand."""

    def __init__(self, lease: BlockLease) -> None:
        self.lease = lease
        self.num_pins = 0
        self.released = False

    @property
    def holds(self) -> bool:
        return not self.released or self.num_pins > 0


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["lease", "extend", "pin", "unpin", "release"]),
            st.integers(0, 7),
        ),
        max_size=80,
    )
)
def test_random_walk_equals_the_naive_model(steps: list[tuple[str, int]]) -> None:
    pool = BlockPool(NUM_BLOCKS)
    leases: list[NaiveLease] = []
    for action, number in steps:
        held = sum(one.lease.num_blocks for one in leases)
        if action == "lease":
            lease = pool.lease(number)
            assert (lease is None) == (number > NUM_BLOCKS - held)
            if lease is not None:
                leases.append(NaiveLease(lease))
        elif leases:
            one = leases[number % len(leases)]
            act(one, action, NUM_BLOCKS - held)
        leases = [one for one in leases if one.holds]
        taken = [block for one in leases for block in one.lease.block_ids]
        assert len(taken) == len(set(taken)), "a block has two owners"
        assert pool.num_free == NUM_BLOCKS - len(taken)
    for one in leases:
        one.lease.release()
        for _ in range(one.num_pins):
            one.lease.unpin()
    assert pool.num_free == NUM_BLOCKS


def act(one: NaiveLease, action: str, num_free: int) -> None:
    if action == "extend" and not one.released:
        before = one.lease.block_ids
        assert one.lease.extend(2) == (num_free >= 2)
        assert one.lease.block_ids[: len(before)] == before
    elif action == "pin":
        one.lease.pin()
        one.num_pins += 1
    elif action == "unpin" and one.num_pins:
        one.lease.unpin()
        one.num_pins -= 1
    elif action == "release":
        one.lease.release()
        one.released = True


def test_a_pool_needs_a_block() -> None:
    with pytest.raises(ValueError, match="num_blocks"):
        BlockPool(0)


def test_a_lease_dropped_unreleased_is_told() -> None:
    pool = BlockPool(3)
    lease = pool.lease(2)
    assert lease is not None
    with pytest.warns(ResourceWarning, match="2 KV blocks leaked"):
        lease.__del__()
    lease.release()


def test_unpin_without_pin_is_a_bug() -> None:
    lease = BlockPool(1).lease(1)
    assert lease is not None
    with pytest.raises(AssertionError):
        lease.unpin()
    lease.release()
