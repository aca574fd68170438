"""Pages of a KV pool made before somebody needs them, a margin ahead of the blocks in use.

The pool's memory exists once it is written, and a first write costs several times the copy itself:
the kernel finds and clears each page. A block pool gives away blocks that were never used in the
order of their numbers, so those that come next are known. A thread that stands back from all
others makes them, one block at a time, so that it never holds up a step for longer than that.

Changes no content and nobody waits for it: without it the first writer of a page makes the page.
Knows neither leases nor sequences. Not covered: kernels before Linux 5.14, which it does without.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

from pdserve.log import event_log

MARGIN_BYTES = 128 * 2**20
STANDS_BACK = 10  # nice; lower ones are so rare on a busy core that the margin is used up

_MADV_POPULATE_WRITE = 23

_log = event_log(__name__)


class FreshPages:
    """``reached`` from one thread, ``close`` once, before the memory goes."""

    def __init__(
        self, memory: mmap.mmap, num_blocks: int, block_bytes: int, margin_bytes: int = MARGIN_BYTES
    ) -> None:
        self._anchor = ctypes.c_char.from_buffer(memory)  # the mapping stays while this does
        self._num_blocks = num_blocks
        self._block_bytes = block_bytes
        self._margin = max(1, margin_bytes // block_bytes)
        self._next = 0  # block to be made
        self._goal = 0  # blocks below it are wanted
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def reached(self, block_id: int) -> None:
        """A block is written: those up to the margin after it are wanted. Never waits long."""
        goal = min(block_id + 1 + self._margin, self._num_blocks)
        if goal <= self._goal:
            return
        with self._changed:
            self._goal = goal
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._make, name="fresh-pages", daemon=True)
            self._thread.start()

    def settle(self) -> int:
        """Wait until what is wanted is made; number of blocks made (fewer: the kernel cannot)."""
        with self._changed:
            self._changed.wait_for(lambda: self._next >= self._goal or self._is_closing)
            return self._next

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _make(self) -> None:
        os.nice(STANDS_BACK)  # on Linux that of this thread alone
        advise = ctypes.CDLL(None, use_errno=True).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        start = ctypes.addressof(self._anchor)
        while self._wait_for_work():
            low = _page_of(self._next * self._block_bytes)
            high = (self._next + 1) * self._block_bytes
            if advise(start + low, high - low, _MADV_POPULATE_WRITE):
                _log.info("kv_pages_not_made", error=os.strerror(ctypes.get_errno()))
                with self._changed:
                    self._is_closing = True
                    self._changed.notify_all()
                return
            with self._changed:
                self._next += 1
                self._changed.notify_all()
            os.sched_yield()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._next < self._goal or self._is_closing)
            return not self._is_closing


def _page_of(offset: int) -> int:
    """The start of the page that holds a byte."""
    return offset - offset % mmap.PAGESIZE
