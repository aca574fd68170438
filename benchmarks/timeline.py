"""A run in slices of time: what arrived, ran and came out in each, for eyes and for plots."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.load.percentiles import percentile
from cluster.load.records import RequestRecord
from cluster.load.table import number, table
from cluster.load.turns import Turn

HEAD = ("from s", "due", "running", "tokens/s", "ITL p50 ms", "ITL max ms")


def timeline_rows(
    records: Sequence[RequestRecord], width_s: float, gaps_of: str = ""
) -> list[tuple[str, ...]]:
    """``gaps_of``: the kind of request whose gaps and tokens are shown; "": all of them.

    "due" counts the requests of every kind that fell due in the slice, "running" those under way
    at its start.
    """
    rows: list[tuple[str, ...]] = [HEAD]
    if not records:
        return rows
    shown = [record for record in records if gaps_of in ("", record.kind)]
    num_slices = int(max(record.ended_s for record in records) / width_s) + 1
    for index in range(num_slices):
        start_s, end_s = index * width_s, (index + 1) * width_s
        gaps_s = [g for record in shown for at, g in record.gaps if start_s <= at < end_s]
        tokens = sum(n for record in shown for at, n in record.arrivals if start_s <= at < end_s)
        rows.append((
            f"{start_s:g}",
            str(sum(start_s <= record.due_s < end_s for record in records)),
            str(sum(record.due_s <= start_s < record.ended_s for record in records)),
            number(tokens / width_s),
            number(percentile(gaps_s, 50) * 1e3) if gaps_s else "-",
            number(max(gaps_s) * 1e3) if gaps_s else "-",
        ))  # fmt: skip
    return rows


def print_timelines(turns: Sequence[Turn], width_s: float, gaps_of: str = "") -> None:
    """One table for each turn."""
    for turn in turns:
        print(f"\n{turn.setup.name}, round {turn.round + 1}:")
        print(table(timeline_rows(turn.records, width_s, gaps_of)))
    print()
