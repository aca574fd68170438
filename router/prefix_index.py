"""Which workers have the KV of which blocks: hash of a block -> set of workers, in fixed memory.

A table of buckets of 8 places; a hash may lie in either of two buckets (named by its low and by its
high 32 bits) and is put where there is more room (balanced allocations: Azar et al., SIAM J.
Comput. 29, 1999), so that a table three quarters full still takes nearly everything. No place left:
the block is not known. That, and two blocks of one hash, cost a worse choice and nothing else:
workers look for themselves.

12 bytes a place (8 of hash, 4 the number of a set of workers, worker_sets.py). Plain arrays;
nothing is ever moved, so that no call takes long. Pure; knows neither prompts nor sessions.

Workers evict the last block of a chain first (engine/block_pool.py), so the holders of a chain only
become fewer along it, and where each one's part ends is found by halving: some ten blocks are
looked at for each end, not all. A gap in the middle (a block that found no place, or that a failed
step made its worker forget) may be overlooked: the worker then counts as having what follows it.
Nothing here knows which block follows which; ``walk`` looks at every block.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from router.worker_sets import EMPTY, WorkerSets

Hashes = NDArray[np.uint64]
Depths = NDArray[np.int32]
_Places = NDArray[np.int64]
_Buckets = NDArray[np.int64]  # two rows: the first and the second bucket of each hash
_Ends = list[tuple[int, int]]  # bits of workers, and how many blocks of a chain they have

BUCKET = 8
FILL = 0.625  # of all places, at the number of blocks the table is made for
FIRST_LOOK = 32  # blocks, of a walk; each further look takes four times as many
MAX_PROBES = 96  # blocks looked at one by one; a walk over 512 blocks takes as long as some 300
_SHIFT = np.uint64(32)
_HASH_BYTES = 8
_BUCKET_BYTES = BUCKET * _HASH_BYTES
FEW_BLOCKS = 4  # stored one by one: arrays cost as much as some ten blocks
FEW = 24  # bits set one by one rather than as a mask
# Of a byte: how many bits are set, and which is the first (packbits begins with the highest).
_NUM_BITS = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)
_FIRST_BIT = np.array([8 - byte.bit_length() for byte in range(256)], dtype=np.int64)


def hashes_of(joined: bytes) -> Hashes:
    """Hashes of 8 bytes each, as workers send them."""
    return np.frombuffer(joined, dtype="<u8")


class PrefixIndex:
    """``max_blocks``: how many different blocks it is made for."""

    def __init__(self, max_blocks: int) -> None:
        num_buckets = 1 << max(0, int(max_blocks / FILL / BUCKET) - 1).bit_length()
        self._mask = np.uint64(num_buckets - 1)
        # The same memory as bytes and as arrays. A hash is sought in its bucket by the bytes' own
        # ``find``: half the time of taking the numbers out to look at them.
        self._bytes = _zero_bytes(num_buckets * _BUCKET_BYTES)
        self._hashes = np.frombuffer(self._bytes, dtype=np.uint64).reshape(num_buckets, BUCKET)
        self._sets = np.zeros((num_buckets, BUCKET), dtype=np.uint32)
        self._flat_hashes, self._flat_sets = self._hashes.reshape(-1), self._sets.reshape(-1)
        self._set_words = self._flat_sets.data  # indexing an array costs three times as much
        self._last_bucket = num_buckets - 1
        self._workers = WorkerSets()
        self._free_bits: list[int] = []
        self._num_bits = 0
        self.num_untold = 0  # blocks that found no place

    @property
    def num_bytes(self) -> int:
        """Of the table; sets of workers come on top."""
        return self._hashes.nbytes + self._sets.nbytes

    @property
    def num_blocks(self) -> int:
        """Different blocks that somebody has."""
        return self._workers.num_users

    @property
    def num_sets(self) -> int:
        """Different sets of workers that blocks have."""
        return len(self._workers)

    @property
    def num_bits(self) -> int:
        """Workers' bits are below this number."""
        return self._num_bits

    def add_worker(self) -> int:
        """The bit of a new worker, which has nothing."""
        if self._free_bits:
            return self._free_bits.pop()
        self._num_bits += 1
        return self._num_bits - 1

    def remove_worker(self, bit: int) -> None:
        self.forget(bit)
        self._free_bits.append(bit)

    def forget(self, bit: int) -> None:
        """Nothing is known of what this worker has."""
        self._workers.drop_worker(bit)

    def store(self, bit: int, hashes: Hashes) -> Hashes:
        """The worker has these blocks. Returns those that it was not known to have."""
        if len(hashes) <= FEW_BLOCKS:
            lacking = [value for value in hashes.tolist() if self._store_one(bit, value)]
            return np.array(lacking, dtype=np.uint64)
        hashes = _each_once(hashes)
        buckets, places = self._look(hashes)
        known = places >= 0
        num_known = np.count_nonzero(known)
        if not num_known:
            self._insert(1 << bit, hashes, buckets)
            return hashes
        if num_known == len(hashes):
            return hashes[self._put(bit, places, present=True)]
        new = ~known
        lacked = new.copy()
        lacked[known] = self._put(bit, places[known], present=True)  # else taken by the new ones
        self._insert(1 << bit, hashes[new], buckets[:, new])
        return hashes[lacked]

    def store_for_all(self, bits: Sequence[int], hashes: Hashes) -> list[Hashes]:
        """``store`` for several workers; what each lacked."""
        if len(bits) > 1 and len(hashes) > FEW_BLOCKS:
            once = _each_once(hashes)
            buckets, places = self._look(once)
            if (places < 0).all():  # a new prompt: nobody has anything of it
                self._insert(sum({1 << bit for bit in bits}), once, buckets)
                return [once] * len(bits)
        return [self.store(bit, hashes) for bit in bits]

    def evict(self, bit: int, hashes: Hashes) -> None:
        """The worker has these blocks no more."""
        places = self._find(_each_once(hashes))
        self._put(bit, places[places >= 0], present=False)

    def depths(self, hashes: Hashes) -> Depths:
        """For each bit: how many blocks of this chain the worker has from its start on."""
        ends = self._ends_by_halving(hashes)
        return self.walk(hashes) if ends is None else self._as_depths(ends)

    def depth(self, bit: int, hashes: Hashes) -> int:
        """``depths`` of one worker."""
        if not len(hashes) or not self._has(bit, hashes.item(0)):
            return 0
        if self._has(bit, hashes.item(-1)):
            return len(hashes)
        low, high = 0, len(hashes) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._has(bit, hashes.item(middle)):
                low = middle
            else:
                high = middle
        return high

    def walk(self, hashes: Hashes) -> Depths:
        """The plain twin of ``depths``, which looks at every block up to the first gap."""
        return self._as_depths(self._ends_by_walking(hashes))

    def _ends_by_halving(self, hashes: Hashes) -> _Ends | None:
        """None: the ends are too many to look for them one by one."""
        if not len(hashes):
            return []
        values, holders = hashes.data, self._holders
        low, high = 0, len(hashes) - 1
        before = holders(values[0])
        after = before and before & holders(values[high])
        ends, parts = [(after, len(hashes))], [(low, before, high, after)]
        probes = 0
        while parts:
            low, before, high, after = parts.pop()
            while before != after:  # some worker's end lies between
                if high - low <= 1:
                    ends.append((before & ~after, high))
                    break
                if probes == MAX_PROBES:
                    return None
                probes += 1
                middle = (low + high) // 2
                there = before & holders(values[middle])
                rest = there & after
                if there == before:  # no end in the lower half
                    low, after = middle, rest
                else:
                    if there != rest:
                        parts.append((middle, there, high, rest))
                    high, after = middle, there
        return ends

    def _ends_by_walking(self, hashes: Hashes) -> _Ends:
        ends: _Ends = []
        begin, look, alive = 0, FIRST_LOOK, -1  # -1: every worker
        while begin < len(hashes) and alive:
            end = min(begin + look, len(hashes))
            places = self._find(hashes[begin:end])
            sets = np.where(places >= 0, self._flat_sets[places], EMPTY)
            starts = np.flatnonzero(np.diff(sets, prepend=sets[0] + np.uint32(1)))
            for start in starts.tolist():
                members = self._workers.members[sets[start]]
                if begin + start == 0:
                    alive = members
                elif gone := alive & ~members:
                    ends.append((gone, begin + start))
                    alive &= members
                if not alive:
                    break
            begin, look = end, 4 * look
        if alive > 0:
            ends.append((alive, len(hashes)))
        return ends

    def _holders(self, value: int) -> int:
        """Bits of the workers that have this one block."""
        place = self._place(value)
        return 0 if place < 0 else self._workers.members[self._set_words[place]]

    def _has(self, bit: int, value: int) -> bool:
        return bool(self._holders(value) >> bit & 1)

    def _place(self, value: int) -> int:
        """``_find`` for one hash."""
        find, sought = self._bytes.find, value.to_bytes(_HASH_BYTES, sys.byteorder)
        start = (value & self._last_bucket) * _BUCKET_BYTES
        at = find(sought, start, start + _BUCKET_BYTES)
        if at < 0:
            start = (value >> 32 & self._last_bucket) * _BUCKET_BYTES
            at = find(sought, start, start + _BUCKET_BYTES)
            if at < 0:
                return -1
        if at % _HASH_BYTES:  # made of two neighbours' bytes
            return int(self._find(np.array([value], dtype=np.uint64))[0])
        return at // _HASH_BYTES

    def _as_depths(self, ends: _Ends) -> Depths:
        depths = np.zeros(self._num_bits, dtype=np.int32)
        for members, depth in ends:
            if members.bit_count() > FEW:
                depths[self._as_mask(members)] = depth
                continue
            while members:
                lowest = members & -members
                depths[lowest.bit_length() - 1] = depth
                members ^= lowest
        return depths

    def _as_mask(self, members: int) -> NDArray[np.bool_]:
        num_bytes = -(-self._num_bits // 8)
        bits = np.frombuffer(members.to_bytes(num_bytes, "little"), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._num_bits].view(np.bool_)

    def _look(self, hashes: Hashes) -> tuple[_Buckets, _Places]:
        """The two buckets of each hash, and its place: -1 if it is in neither."""
        buckets = np.array((hashes, hashes >> _SHIFT))
        buckets &= self._mask
        indices = buckets.view(np.int64)
        places = np.full(len(hashes), -1, dtype=np.int64)
        found = np.flatnonzero(self._hashes.take(indices, axis=0) == hashes[:, None])
        if len(found):
            rows = found // BUCKET  # of both times all hashes
            places[rows % len(hashes)] = indices.reshape(-1)[rows] * BUCKET + found % BUCKET
        return indices, places

    def _find(self, hashes: Hashes) -> _Places:
        """Places of these hashes, -1 for those that are not there."""
        return self._look(hashes)[1]

    def _put(self, bit: int, places: _Places, *, present: bool) -> NDArray[np.bool_]:
        """Returns for which of them that changed anything."""
        before = self._flat_sets[places]
        if len(places) and (before == before[0]).all():  # blocks of one chain, nearly always
            number, workers = before.item(0), self._workers
            new = workers.changed_one(number, bit, present=present)
            if new != number:
                self._flat_sets[places] = new
                workers.count_same(number, new, len(places))
                if new == EMPTY:
                    self._flat_hashes[places] = 0
            return np.full(len(places), new != number)
        after = self._workers.changed(before, bit, present=present)
        self._flat_sets[places] = after
        self._workers.count(after, before)
        self._flat_hashes[places[after == EMPTY]] = 0  # a hash has one place at most
        changed: NDArray[np.bool_] = after != before
        return changed

    def _insert(self, members: int, hashes: Hashes, buckets: _Buckets) -> None:
        """Hashes that are not there, each once. Of two that want one place the later one looks
        again."""
        while len(hashes):
            # Of each bucket one byte, a bit for each place whose block nobody has.
            free = np.packbits(self._workers.is_empty[self._sets.take(buckets, axis=0)], axis=-1)
            first, second = free[:, :, 0]
            more = _NUM_BITS[second] > _NUM_BITS[first]
            chosen = np.where(more, second, first)
            places = np.where(more, buckets[1], buckets[0]) * BUCKET + _FIRST_BIT[chosen]
            if not chosen.all():
                has_room = chosen > 0
                self.num_untold += len(hashes) - int(np.count_nonzero(has_room))
                hashes, places, buckets = hashes[has_room], places[has_room], buckets[:, has_room]
            if len(set(places.tolist())) == len(places):
                self._take(members, places, hashes)
                return
            taken, winners = np.unique(places, return_index=True)
            self._take(members, taken, hashes[winners])
            hashes, buckets = np.delete(hashes, winners), np.delete(buckets, winners, axis=1)

    def _store_one(self, bit: int, value: int) -> bool:
        """``store`` for one block; whether the worker was not known to have it."""
        place = self._place(value)
        if place < 0:
            place = self._free_place(value)
            if place < 0:
                self.num_untold += 1
                return True
            self._flat_hashes[place] = value
            before, after = self._set_words[place], self._workers.number(1 << bit)
        else:
            before = self._set_words[place]
            after = self._workers.changed_one(before, bit, present=True)
            if after == before:
                return False
        self._set_words[place] = after
        self._workers.count_same(before, after, 1)
        return True

    def _free_place(self, value: int) -> int:
        """For a block that has none: as ``_insert`` chooses. -1: there is none."""
        best: list[int] = []
        for bucket in (value & self._last_bucket, value >> 32 & self._last_bucket):
            start, is_empty = bucket * BUCKET, self._workers.is_empty
            free = [at for at in range(start, start + BUCKET) if is_empty[self._set_words[at]]]
            best = free if len(free) > len(best) else best
        return best[0] if best else -1

    def _take(self, members: int, places: _Places, hashes: Hashes) -> None:
        """These places, which are free, for blocks that only these workers have."""
        before = self._flat_sets[places]
        number = self._workers.number(members)
        self._flat_hashes[places] = hashes
        self._flat_sets[places] = number
        if before.any():  # sets that lost their last worker
            self._workers.count(self._flat_sets[places], before)
        else:
            self._workers.count_same(EMPTY, number, len(places))


def _each_once(hashes: Hashes) -> Hashes:
    return hashes if len(set(hashes.tolist())) == len(hashes) else np.unique(hashes)


def _zero_bytes(num_bytes: int) -> mmap.mmap:
    """Pages exist once they are written; large ones where the system has them."""
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
