"""Who wins at what: one setup's measures beside another's, in words. Pure.

Medians over rounds. Within ``EVEN`` of each other counts as even: a run cannot tell less apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cluster.load.table import number

EVEN = 0.05
# (measure, whether more of it is better)
_JUDGED = (
    ("TTFT p50 ms", False),
    ("TTFT p99 ms", False),
    ("ITL p50 ms", False),
    ("ITL p99 ms", False),
    ("E2E p50 ms", False),
    ("output tokens/s", True),
    ("SLOs met %", True),
)


def verdict_lines(
    ours: Sequence[Mapping[str, float]],
    theirs: Sequence[Mapping[str, float]],
    our_name: str,
    their_name: str,
) -> list[str]:
    """The measures of each one's turns. What either lacks is left out."""
    found: dict[str, list[str]] = {"wins at": [], "loses at": [], "even at": []}
    for name, more_is_better in _JUDGED:
        mine = [turn[name] for turn in ours if name in turn]
        other = [turn[name] for turn in theirs if name in turn]
        if mine and other:
            here, there = statistics.median(mine), statistics.median(other)
            how = _how(here, there, more_is_better=more_is_better)
            found[how].append(f"{name} {number(here)} instead of {number(there)}")
    lines = [f"  {how:<9} {', '.join(cells)}" for how, cells in found.items() if cells]
    return [f"{our_name!r} beside {their_name!r}:", *lines]


def _how(here: float, there: float, *, more_is_better: bool) -> str:
    if abs(here - there) <= EVEN * max(here, there):
        return "even at"
    return "wins at" if (here > there) is more_is_better else "loses at"
