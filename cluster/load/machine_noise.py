"""How busy the machine is before we add to it: what else runs decides what a figure is worth."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

_STAT = Path("/proc/stat")


async def busy_cores(interval_s: float = 1.0) -> float:
    """Cores that were not idle over the next ``interval_s``, whoever used them (Linux)."""
    idle_before, all_before = _ticks()
    await asyncio.sleep(interval_s)
    idle, total = _ticks()
    if total == all_before:
        return 0.0
    return (1 - (idle - idle_before) / (total - all_before)) * (os.cpu_count() or 1)


def _ticks() -> tuple[int, int]:
    """(idle, all) over all cores, from the first line: idle and iowait are its 4th and 5th."""
    fields = [int(field) for field in _STAT.read_text("ascii").split("\n", 1)[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)
