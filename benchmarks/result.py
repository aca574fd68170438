"""What a benchmark scenario gives back to the runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """``rows``: a table of text, its head first. ``data``: for JSON, every sample kept."""

    rows: Sequence[tuple[str, ...]]
    data: Mapping[str, object]
