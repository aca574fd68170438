"""What a pool remembers of stored and evicted content, for whoever keeps a copy of it."""

from __future__ import annotations

from engine.block_index import MAX_REMEMBERED_CHANGES, BlockIndex
from engine.block_pool import BlockPool
from engine.prefix_keys import PrefixKeys

KEYS = PrefixKeys("model", 1).chain("").keys(range(5000), 5000)


def test_changes_replayed_give_what_is_stored() -> None:
    pool = BlockPool(3)
    for first in (0, 2, 4):
        lease = pool.lease(2)
        assert lease is not None
        lease.store(KEYS[first:], 2)
        lease.release()
    copy: set[bytes] = set()
    changes = pool.index.changes_since(0)
    assert changes is not None
    assert [change.seq for change in changes] == list(range(1, len(changes) + 1))
    for change in changes:
        (copy.add if change.is_stored else copy.remove)(change.digest)
    assert copy == {key.digest for key in KEYS[:10] if pool.find([key])}
    assert len(copy) == pool.num_stored == 3
    assert pool.index.changes_since(changes[-1].seq) == []


def test_who_missed_too_much_is_told() -> None:
    index = BlockIndex()
    for block_id in range(MAX_REMEMBERED_CHANGES + 1):
        index.store(KEYS[block_id], block_id)
    assert index.changes_since(0) is None
    remembered = index.changes_since(1)
    assert remembered is not None
    assert len(remembered) == MAX_REMEMBERED_CHANGES
