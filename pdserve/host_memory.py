"""How much memory this host, or the container it is, could still give. Linux.

Knows neither who asks nor what for. Not covered: NUMA nodes, version 1 of cgroups.
"""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """What the kernel would give without swapping, and no more than the cgroup's limit leaves."""
    lines = meminfo.read_text(encoding="ascii").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    limit, used = (cgroup / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        return max(0, min(kib * 1024, int(text) - int(used.read_text())))
    return kib * 1024
