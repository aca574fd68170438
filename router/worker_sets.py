"""Sets of workers, each kept once and called by a number.

Most blocks of a prefix index have the same few holders, so a block needs a number and not a set. A
worker is a bit; set 0 is empty. A set that no block refers to is given up, its number used again.
Not known here: blocks, workers' names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EMPTY = 0

Sets = NDArray[np.uint32]


class WorkerSets:
    def __init__(self) -> None:
        self.members = [0]  # set -> bits of its workers
        self._number_of: dict[int, int] = {0: EMPTY}
        self._num_users = np.zeros(64, dtype=np.int64)
        self._unused: list[int] = []
        self._with: dict[tuple[int, int], int] = {}  # (set, bit) -> set with it, while both live
        self.is_empty = np.ones(64, dtype=np.bool_)

    def __len__(self) -> int:
        """Sets in use, the empty one included."""
        return len(self.members) - len(self._unused)

    @property
    def num_users(self) -> int:
        """Blocks whose set is not empty."""
        return int(self._num_users[~self.is_empty].sum())

    def number(self, members: int) -> int:
        """The set with these workers; it lives until ``count`` takes its last user away."""
        found = self._number_of.get(members)
        if found is not None:
            return found
        number = self._unused.pop() if self._unused else len(self.members)
        if number == len(self.members):
            self.members.append(members)
            self._grow()
        self.members[number] = members
        self._number_of[members] = number
        self.is_empty[number] = False
        return number

    def changed(self, sets: Sets, bit: int, *, present: bool) -> Sets:
        """For each set the one with (without) the worker."""
        result = sets.copy()
        for number in np.unique(sets).tolist():
            wanted = self.changed_one(number, bit, present=present)
            if wanted != number:
                result[sets == number] = wanted
        return result

    def changed_one(self, number: int, bit: int, *, present: bool) -> int:
        """``changed`` for one set."""
        members = self.members[number]
        wanted = members | 1 << bit if present else members & ~(1 << bit)
        return number if wanted == members else self.number(wanted)

    def count(self, added: Sets, removed: Sets) -> None:
        """Blocks refer to ``added`` now, and not to ``removed`` any more."""
        for sets, sign in ((added, 1), (removed, -1)):
            numbers, counts = np.unique(sets, return_counts=True)
            self._num_users[numbers] += sign * counts
        self._give_up_unused(np.unique(removed).tolist())

    def count_same(self, before: int, after: int, num_blocks: int) -> None:
        """``count`` for blocks that all referred to one set and refer to another one now."""
        self._num_users[after] += num_blocks
        self._num_users[before] -= num_blocks
        self._give_up_unused([before])

    def drop_worker(self, bit: int) -> None:
        """Take one worker out of every set. Sets that become equal stay apart."""
        for number, members in enumerate(self.members):
            if members >> bit & 1:
                if self._number_of.get(members) == number:
                    del self._number_of[members]
                left = members & ~(1 << bit)
                self.members[number] = left
                self.is_empty[number] = not left
                if left:
                    self._number_of.setdefault(left, number)

    def _give_up_unused(self, numbers: list[int]) -> None:
        for number in numbers:
            if number != EMPTY and self._num_users[number] == 0:
                self._give_up(number)

    def _give_up(self, number: int) -> None:
        members = self.members[number]
        if self._number_of.get(members) == number:
            del self._number_of[members]
        self.members[number] = 0
        self.is_empty[number] = True
        self._unused.append(number)

    def _grow(self) -> None:
        if len(self.members) > len(self._num_users):
            more = len(self._num_users)
            self._num_users = np.concatenate([self._num_users, np.zeros(more, dtype=np.int64)])
            self.is_empty = np.concatenate([self.is_empty, np.ones(more, dtype=np.bool_)])
