"""KV memory of a worker that is not told: a share of what the host can give."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.cpu_memory import default_cpu_kv_bytes
from pdserve.host_memory import available_memory_bytes

GIB = 2**30


def test_workers_that_divide_the_cores_divide_half_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    shares = [default_cpu_kv_bytes(threads, 64 * GIB) for threads in (1, 3, 4)]
    assert shares == [4 * GIB, 12 * GIB, 16 * GIB]
    assert sum(shares) == 32 * GIB
    assert default_cpu_kv_bytes(100, 64 * GIB) == 32 * GIB


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [(None, 0, 8 * GIB), ("max", GIB, 8 * GIB), (str(4 * GIB), GIB, 3 * GIB),
     (str(64 * GIB), GIB, 8 * GIB), (str(GIB), 2 * GIB, 0)],
)  # fmt: skip
def test_a_containers_limit_counts(
    tmp_path: Path, limit: str | None, used: int, expected: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 9999999 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
    assert available_memory_bytes(meminfo, tmp_path) == expected
