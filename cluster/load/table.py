"""Tables of text for people: aligned columns, and cells that show a spread over repetitions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def spread_cell(values: Sequence[float]) -> str:
    """One value as it is, several as "median (min-max)", none as "-"."""
    if not values:
        return "-"
    median = statistics.median(values)
    if all(isinstance(value, int) for value in values) and median == int(median):
        median = int(median)
    if len(values) == 1:
        return number(median)
    return f"{number(median)} ({number(min(values))}-{number(max(values))})"


def number(value: float) -> str:
    """About three significant digits, without exponents; whole numbers as they are."""
    if abs(value) >= 100 or isinstance(value, int):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
