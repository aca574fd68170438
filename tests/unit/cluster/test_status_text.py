"""``pdserve status`` as people read it."""

from __future__ import annotations

from dataclasses import replace

from cluster.commands.status import status_text
from pdserve.public import KvPairView
from pdserve.types import WorkerId
from support.scripted_backend import STATUS


def test_each_pair_has_a_line_with_what_is_known_of_it() -> None:
    p0, d0 = WorkerId("p0"), WorkerId("d0")
    pairs = (
        KvPairView(p0, d0, "shm", 12, 34_500_000, 1.25e9, 5.5e9, 2, 8_400_000),
        KvPairView(p0, WorkerId("d1"), "tcp"),
    )
    lines = status_text(replace(STATUS, kv_pairs=pairs)).splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["p0", "d0", "shm", "5.50", "(8.4)", "12", "2", "34.5", "1.25"],
        ["p0", "d1", "tcp", "-", "0", "0", "0.0", "-"],
    ]
    assert lines[-3].startswith("KV from  to  transport  GB/s (of MB)  requests")
    assert lines[-4] == ""


def test_without_pairs_there_is_no_table_of_them() -> None:
    assert "KV from" not in status_text(replace(STATUS, kv_pairs=()))
