"""Freed memory that glibc keeps for the next large message. Linux with glibc; nothing elsewhere.

By itself it maps what is large anew, or gives it back as soon as twice the largest block lies free:
then the kernel fills the pages of every message with zeros, which is half of what a KV read over
gRPC costs (docs/decisions/0011). Concerns the whole process, so ask for it only where such messages
are really sent. Who has set malloc's thresholds in the environment is left alone. Not covered:
other allocators, and glibc's limits for each thread's arena, which keeps as much again.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from pdserve.config import malloc_is_told
from pdserve.log import event_log

MIB = 1 << 20
LARGEST_BYTES = 8 * MIB  # beyond, memory is mapped and unmapped as before
KEPT_BYTES = 64 * MIB  # at an arena's end; more is given back
_GROWTH_BYTES = 16 * MIB  # taken from the system at once
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h

_log = event_log(__name__)


@functools.cache
def keep_freed_memory() -> bool:
    """Whether this process keeps it from now on. Asked again it does nothing."""
    if sys.platform != "linux" or malloc_is_told():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    values = {
        _M_MMAP_THRESHOLD: LARGEST_BYTES,
        _M_TRIM_THRESHOLD: KEPT_BYTES,
        _M_TOP_PAD: _GROWTH_BYTES,
    }
    done = all([mallopt(name, value) for name, value in values.items()])
    _log.info(
        "freed_memory_kept", up_to_mib=KEPT_BYTES // MIB, off_by="MALLOC_TRIM_THRESHOLD_=131072",
        done=done,
    )  # fmt: skip
    return done
