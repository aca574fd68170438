"""What a feed tells of a prefix cache: replayed in order, always exactly what is stored."""

from __future__ import annotations

import random
import struct

import pytest

from engine import cache_feed
from engine.block_index import BlockIndex
from engine.cache_feed import StoredBlocks
from pdserve.prefix_keys import HASH_BYTES, BlockKey


def key(number: int) -> BlockKey:
    return BlockKey(struct.pack("<QQ", number, 0), b"")


def split(hashes: bytes) -> set[int]:
    return {number for (number,) in struct.iter_unpack("<Q", hashes)}


def replay(feed: StoredBlocks, known: set[int]) -> int:
    """Take all there is to take into ``known``; returns the number of deltas."""
    num_taken = 0
    while (delta := feed.take()) is not None:
        num_taken += 1
        if delta.is_reset:
            known.clear()
        known -= split(delta.evicted)
        known |= split(delta.stored)
        assert len(delta.stored + delta.evicted) <= cache_feed.MAX_HASHES * HASH_BYTES
        if not delta.has_more:
            break
    return num_taken


@pytest.mark.parametrize("seed", range(5))
def test_what_is_told_is_what_is_stored(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_feed, "MAX_HASHES", 8)
    draw, index = random.Random(seed), BlockIndex()
    feeds: list[tuple[StoredBlocks, set[int]]] = []
    stored: dict[int, int] = {}  # block -> content
    for step in range(400):
        if step % 100 == 0:
            feeds.append((index.watch(), set()))
        block_id = draw.randrange(40)
        if block_id in stored:
            index.drop(block_id)
            del stored[block_id]
        elif (content := draw.randrange(200)) not in stored.values():
            index.store(key(content), block_id)
            stored[block_id] = content
        for feed, known in feeds:
            if draw.random() < 0.05:
                feed.restart()
            if draw.random() < 0.1:
                replay(feed, known)
                assert known == set(stored.values())


def test_nothing_new_is_nothing_to_take() -> None:
    index = BlockIndex()
    index.store(key(1), 0)
    feed = index.watch()
    known: set[int] = set()
    assert (replay(feed, known), known) == (1, {1})
    assert feed.take() is None


def test_an_empty_cache_is_told_too() -> None:
    """A router that knew an earlier content must forget it."""
    delta = BlockIndex().watch().take()
    assert delta is not None
    assert (delta.stored, delta.is_reset, delta.has_more) == (b"", True, False)


def test_a_closed_feed_is_not_told_any_more() -> None:
    index = BlockIndex()
    feed = index.watch()
    feed.take()
    feed.close()
    index.store(key(1), 0)
    assert feed.take() is None


def test_a_feed_that_nobody_takes_from_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_feed, "MAX_HASHES", 8)
    index = BlockIndex()
    feed = index.watch()
    feed.take()
    for number in range(100):
        index.store(key(number), 0)
        index.drop(0)
    index.store(key(7), 0)
    known = {3}
    replay(feed, known)
    assert known == {7}
