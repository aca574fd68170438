"""Percentiles of samples, by linear interpolation between the two nearest ranks.

The same as numpy's default and ``statistics.quantiles(method="inclusive")``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """``percent`` in [0, 100]. Raises ValueError without values or outside that range."""
    if not values:
        raise ValueError("no values to take a percentile of")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must lie in [0, 100], not {percent}")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def percentiles_ms(
    name: str, values_s: Sequence[float], percents: Sequence[int] = (50, 90, 99)
) -> dict[str, float]:
    """``{"name p50 ms": ...}`` of samples in seconds, 100 as "max"; empty without samples."""
    if not values_s:
        return {}
    return {
        f"{name} {'max' if percent == 100 else f'p{percent}'} ms": percentile(values_s, percent)
        * 1e3
        for percent in percents
    }
