"""Where bytes land that NIXL reads: slots of registered memory, from which readers copy.

Not the reader's own blocks: a read that was given up may go on writing for as long as the holder
hangs (docs/decisions/0016), and blocks must be free at once. A slot that nobody waits for stays
taken until its read has ended. Used by one event loop; knows neither NIXL nor blocks.
"""

from __future__ import annotations

import asyncio
import mmap

import numpy as np

from kvtransfer.config import MIB

SLOT_BYTES = MIB
NUM_SLOTS = 32


class Landing:
    """``slot_bytes`` times ``num_slots`` of memory, whose pages exist once they are used."""

    def __init__(self, slot_bytes: int = SLOT_BYTES, num_slots: int = NUM_SLOTS) -> None:
        self.slot_bytes = slot_bytes
        self.num_bytes = slot_bytes * num_slots
        self._memory = memoryview(mmap.mmap(-1, self.num_bytes))
        self.address = address_of(self._memory)
        self._free = list(reversed(range(num_slots)))
        self._changed = asyncio.Event()

    @property
    def num_free(self) -> int:
        return len(self._free)

    async def take(self) -> int:
        """The number of a slot that is nobody's; waits until there is one."""
        while not self._free:
            self._changed.clear()
            await self._changed.wait()
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        self._free.append(slot)
        self._changed.set()

    def view(self, slot: int) -> memoryview:
        start = slot * self.slot_bytes
        return self._memory[start : start + self.slot_bytes]

    def address_in(self, slot: int) -> int:
        return self.address + slot * self.slot_bytes


def address_of(memory: memoryview) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)
