"""What this host has: cores this process may use, CUDA devices it sees. No torch needed.

CUDA devices are counted by the driver itself, which honours CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ctypes
import os

from cluster.spec import Host


def inspect_host(*, with_cuda: bool) -> Host:
    """``with_cuda`` loads the CUDA driver; leave it out where no worker wants a GPU."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return Host(cores, _count_cuda_devices() if with_cuda else 0)


def _count_cuda_devices() -> int:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
