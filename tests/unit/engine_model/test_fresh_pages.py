"""Pages made ahead: which, with what content, and that nothing is left of the thread."""

from __future__ import annotations

import ctypes
import mmap
import threading

import pytest

from engine.fresh_pages import FreshPages
from pdserve.memory_file import MemoryFile

PAGE = mmap.PAGESIZE
BLOCK = PAGE + PAGE // 2  # blocks share pages


def resident(memory: mmap.mmap) -> list[bool]:
    """Of each page, whether it exists (mincore)."""
    num_pages = -(-len(memory) // PAGE)
    found = (ctypes.c_ubyte * num_pages)()
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert mincore(start, len(memory), found) == 0
    return [bool(each & 1) for each in found]


def test_the_margin_after_a_block_is_made_and_nothing_after_it() -> None:
    threads = set(threading.enumerate())
    memory = MemoryFile(12 * BLOCK, "test")
    pages = FreshPages(memory.mapping, 10, BLOCK, margin_bytes=2 * BLOCK)
    try:
        assert not any(resident(memory.mapping))
        pages.reached(1)
        if pages.settle() == 0:
            pytest.skip("this kernel makes no pages ahead")
        made = resident(memory.mapping)
        assert made == [True] * 6 + [False] * 12  # blocks 0 to 3
        memory.view[:4] = b"kept"
        pages.reached(0)  # behind what is made: nothing to do
        pages.reached(9)  # the last block: not beyond the pool
        assert pages.settle() == 10
        assert resident(memory.mapping) == [True] * 15 + [False] * 3
        assert bytes(memory.view[:4]) == b"kept"
        assert not any(memory.view[4:])
    finally:
        pages.close()
    assert set(threading.enumerate()) <= threads


def test_what_is_never_reached_takes_no_memory_and_no_thread() -> None:
    memory = MemoryFile(4 * BLOCK, "test")
    pages = FreshPages(memory.mapping, 4, BLOCK)
    pages.close()
    assert not any(resident(memory.mapping))
