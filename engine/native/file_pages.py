"""A file mapped for reading, on huge pages where the kernel and the file system can.

Weights are read from end to end in every decode step, and on small pages the processor's own
prefetching ends every 4 KiB. ext4, XFS and others keep what is read for a mapping with this advice
in folios of 2 MiB (ext4 from Linux 6.16 on), one copy for all processes.
What already lies in the page cache in small pages stays so as long as somebody maps it; if nobody
does it is read again. Elsewhere the mapping is an ordinary one.

Knows nothing of weights. Not covered: hugetlbfs, pages of another size.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np

HUGE_PAGE_BYTES = 2**21
_MADV_POPULATE_READ = 22  # Linux 5.14; Python 3.11 has no name for it
_SMALL_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class MappedFile:
    mapping: mmap.mmap
    huge_bytes: int  # of it, on huge pages


def map_file(fd: int, num_bytes: int) -> MappedFile:
    """The first ``num_bytes`` of the file, read in whole, on huge pages if they can be had.

    Raises:
        OSError: the file cannot be mapped.
    """
    mapped = _map(fd, num_bytes)
    if num_bytes < HUGE_PAGE_BYTES or mapped.huge_bytes >= num_bytes // 2:
        return mapped
    mapped.mapping.close()
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # leaves what others map
    return _map(fd, num_bytes)


def _map(fd: int, num_bytes: int) -> MappedFile:
    mapping = mmap.mmap(fd, num_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    _advise(mapping, mmap.MADV_HUGEPAGE)
    if not _advise(mapping, _MADV_POPULATE_READ):
        np.frombuffer(mapping, np.uint8)[::_SMALL_PAGE_BYTES].max()  # touches every page
    return MappedFile(mapping, _huge_bytes(address_of(mapping)))


def _advise(mapping: mmap.mmap, advice: int) -> bool:
    """False: this kernel does not know the advice, or was built without huge pages."""
    try:
        mapping.madvise(advice)
    except OSError:
        return False
    return True


def address_of(mapping: mmap.mmap) -> int:
    return int(np.frombuffer(mapping, np.uint8).ctypes.data)


def _huge_bytes(address: int) -> int:
    """Of the mapping that begins there, as /proc/self/smaps counts them; 0 if it does not tell."""
    try:
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
            inside = False
            for line in lines:
                if line.startswith(f"{address:x}-"):
                    inside = True
                elif inside and line.startswith("FilePmdMapped:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
