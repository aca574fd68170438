"""The index against its plain twin, a dict of sets; its memory, its limits, hashes that collide."""

from __future__ import annotations

import random

import numpy as np
import pytest

from router.prefix_index import Hashes, PrefixIndex


class PlainIndex:
    """What PrefixIndex means, without its bounds."""

    def __init__(self) -> None:
        self.holders: dict[int, set[int]] = {}

    def store(self, bit: int, hashes: Hashes) -> None:
        for each in hashes.tolist():
            self.holders.setdefault(each, set()).add(bit)

    def evict(self, bit: int, hashes: Hashes) -> None:
        for each in hashes.tolist():
            self.holders.get(each, set()).discard(bit)

    def forget(self, bit: int) -> None:
        for holders in self.holders.values():
            holders.discard(bit)

    def depth(self, bit: int, hashes: Hashes) -> int:
        depth = 0
        for each in hashes.tolist():
            if bit not in self.holders.get(each, ()):
                break
            depth += 1
        return depth


def chain(seed: int, length: int) -> Hashes:
    return np.random.default_rng(seed).integers(1, 2**64, size=length, dtype=np.uint64)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_workers", [1, 3, 70])
def test_as_the_plain_twin(seed: int, num_workers: int) -> None:
    draw, index, plain = random.Random(seed), PrefixIndex(4096), PlainIndex()
    bits = [index.add_worker() for _ in range(num_workers)]
    chains = [chain(seed * 100 + number, draw.randrange(1, 200)) for number in range(12)]
    for _ in range(300):
        bit, hashes = draw.choice(bits), draw.choice(chains)
        part = hashes[: draw.randrange(draw.choice((4, len(hashes))) + 1)]  # few ones often
        match draw.randrange(8):
            case 0:
                index.forget(bit)
                plain.forget(bit)
            case 1 | 2:
                part = hashes[draw.randrange(len(hashes)) :]
                index.evict(bit, part)
                plain.evict(bit, part)
            case _:
                lacked = {each for each in part.tolist() if bit not in plain.holders.get(each, ())}
                twice = draw.choice((part, np.concatenate((part, part[:3]))))
                assert sorted(index.store(bit, twice).tolist()) == sorted(lacked)
                plain.store(bit, part)
        asked = draw.choice(chains)
        assert index.depths(asked).tolist() == [plain.depth(bit, asked) for bit in bits]
        assert index.num_blocks == sum(bool(held) for held in plain.holders.values())
    assert index.num_untold == 0


@pytest.mark.parametrize("num_workers", [2, 70])  # 70: more ends than are looked for one by one
def test_halving_finds_what_a_walk_finds(num_workers: int) -> None:
    draw, index = random.Random(num_workers), PrefixIndex(40_000)
    bits = [index.add_worker() for _ in range(num_workers)]
    for seed in range(40):
        hashes = chain(seed, draw.randrange(1, 600))
        for bit in draw.sample(bits, draw.randrange(num_workers + 1)):
            index.store(bit, hashes[: draw.randrange(len(hashes) + 1)])
        assert np.array_equal(index.depths(hashes), index.walk(hashes))
        assert np.array_equal(index.depths(hashes[:1]), index.walk(hashes[:1]))
        assert [index.depth(bit, hashes) for bit in bits] == index.walk(hashes).tolist()
    assert index.depths(hashes[:0]).tolist() == index.walk(hashes[:0]).tolist() == [0] * num_workers


@pytest.mark.parametrize("seed", range(4))
def test_storing_for_several_is_storing_for_each(seed: int) -> None:
    draw, at_once, one_by_one = random.Random(seed), PrefixIndex(4096), PrefixIndex(4096)
    bits = [at_once.add_worker() for _ in range(3)]
    assert [one_by_one.add_worker() for _ in range(3)] == bits
    chains = [chain(seed * 100 + number, draw.randrange(1, 60)) for number in range(12)]
    for _ in range(60):
        hashes = draw.choice(chains)
        part, some = hashes[: draw.randrange(len(hashes) + 1)], draw.sample(bits, draw.randrange(4))
        told = at_once.store_for_all(some, part)
        assert [sorted(each.tolist()) for each in told] == [
            sorted(one_by_one.store(bit, part).tolist()) for bit in some
        ]
        if draw.random() < 0.3:
            at_once.evict(bits[0], hashes)
            one_by_one.evict(bits[0], hashes)
        assert at_once.depths(hashes).tolist() == one_by_one.depths(hashes).tolist()
        assert at_once.num_blocks == one_by_one.num_blocks


def test_a_gap_in_the_middle_may_be_overlooked_one_at_an_end_is_not() -> None:
    index = PrefixIndex(1000)
    bit, hashes = index.add_worker(), chain(1, 300)
    index.store(bit, hashes)
    index.evict(bit, hashes[100:110])
    assert index.walk(hashes).tolist() == [100]
    assert index.depths(hashes).tolist() == [300]
    index.evict(bit, hashes[:1])
    assert index.depths(hashes).tolist() == [0]


def test_a_walk_ends_at_the_first_gap() -> None:
    index = PrefixIndex(1000)
    bit, hashes = index.add_worker(), chain(1, 300)
    index.store(bit, hashes)
    for gap in (299, 150, 32, 1, 0):
        index.evict(bit, hashes[gap : gap + 1])
        assert index.walk(hashes).tolist() == [gap]


def test_a_hash_is_not_found_in_the_bytes_of_two_neighbours() -> None:
    index = PrefixIndex(8)  # one bucket
    bit = index.add_worker()
    # In memory the second half of one and the first half of the next spell ``straddling``.
    neighbours = np.array([0x22222222_00000000, 0x44444444_11111110], dtype=np.uint64)
    straddling = np.array([0x11111110_22222222], dtype=np.uint64)
    index.store(bit, neighbours[:1])
    index.store(bit, neighbours[1:])
    assert straddling.tobytes() in index._bytes[:], "the case is there"
    assert index.depth(bit, straddling) == index.depths(straddling)[bit] == 0
    index.store(bit, straddling)
    assert index.depth(bit, straddling) == index.depths(straddling)[bit] == 1


def test_a_bit_used_again_knows_nothing() -> None:
    index = PrefixIndex(1000)
    first, second = index.add_worker(), index.add_worker()
    hashes = chain(1, 40)
    for bit in (first, second):
        index.store(bit, hashes)
    index.remove_worker(first)
    assert index.add_worker() == first
    assert index.depths(hashes).tolist() == [0, 40]


def test_it_takes_what_it_is_made_for_and_no_more_memory() -> None:
    index = PrefixIndex(10_000)
    bit = index.add_worker()
    num_bytes = index.num_bytes
    assert num_bytes == 16_384 * 12
    index.store(bit, chain(1, 10_000))
    assert index.num_untold == 0
    index.store(bit, chain(2, 30_000))  # more than there are places
    assert index.num_bytes == num_bytes
    assert index.num_blocks + index.num_untold == 40_000
    index.evict(bit, chain(1, 10_000))
    index.evict(bit, chain(2, 30_000))
    assert index.num_blocks == 0


def test_sets_are_given_up_when_no_block_has_them() -> None:
    """Blocks that pass through many combinations of holders leave nothing behind."""
    index, draw, hashes = PrefixIndex(1000), random.Random(1), chain(1, 10)
    bits = [index.add_worker() for _ in range(20)]
    for _ in range(500):
        (index.store if draw.random() < 0.5 else index.evict)(draw.choice(bits), hashes[:5])
        assert index.num_sets <= 4
