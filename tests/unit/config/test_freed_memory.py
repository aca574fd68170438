"""Large blocks come from memory that malloc kept; in a process of its own, for it concerns all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# mallinfo2 counts the blocks that were mapped from the system one by one.
SCRIPT = """
import ctypes
from pdserve.freed_memory import LARGEST_BYTES, keep_freed_memory

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = list(zip(names.split(), [ctypes.c_size_t] * 10))

count = ctypes.CDLL(None).mallinfo2
count.restype = Info

def num_mapped(num_bytes):
    before = count().hblks
    block = bytearray(num_bytes)
    return count().hblks - before

before = num_mapped(LARGEST_BYTES // 2)
done = keep_freed_memory()
print(done, before, num_mapped(LARGEST_BYTES // 2), num_mapped(8 * LARGEST_BYTES))
"""

needs_glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="glibc only"
)


def printed(**variables: str) -> str:
    told = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**told, **variables}, cwd=Path(__file__).parents[3],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ran.stdout.splitlines()[-1]


@needs_glibc
def test_blocks_up_to_the_limit_are_not_mapped_anew() -> None:
    assert printed() == "True 1 0 1"


@needs_glibc
def test_who_has_set_the_thresholds_is_left_alone() -> None:
    assert printed(MALLOC_TRIM_THRESHOLD_="131072") == "False 1 1 1"
    assert printed(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072") == "False 1 1 1"
