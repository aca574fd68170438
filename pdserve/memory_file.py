"""Memory that another process on this host may map: pages of a file without a name.

A Linux ``memfd``, sealed against shrinking, so that a reader's mapping can never lose its pages.
It is gone when nobody maps it or holds its descriptor, however its processes ended. Where there is
no memfd the memory is ordinary and nobody else can have it. Knows nothing of what is kept in it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref

_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


class MemoryFile:
    """``num_bytes`` zero bytes, page aligned; pages exist once they are written.

    Raises:
        OSError, MemoryError: the memory is not there.
    """

    def __init__(self, num_bytes: int, name: str) -> None:
        self.fd: int | None = None
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            weakref.finalize(self, os.close, self.fd)
            os.ftruncate(self.fd, num_bytes)
            seals = sum(getattr(fcntl, seal) for seal in _SEALS)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self.mapping = mmap.mmap(self.fd, num_bytes)
        else:
            self.mapping = mmap.mmap(-1, num_bytes)

    @property
    def view(self) -> memoryview:
        """All of it, writable; keeps the mapping alive."""
        return memoryview(self.mapping)


def read_only_descriptor(fd: int) -> int:
    """Another descriptor of the same file that can only read; the caller closes it.

    Raises OSError, also where there is no /proc.
    """
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def map_read_only(fd: int) -> mmap.mmap:
    """All of a MemoryFile of another process.

    Raises:
        OSError: it cannot be mapped, or it is not sealed: its owner could take pages away.
    """
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise OSError("the file is not sealed against shrinking")
    return mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)
