"""Pairs of workers that lately could not move KV: barred for a while, longer each time.

The workers stay usable with others (docs/protocol.md section 2). Pure: times are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.types import WorkerId

Pair = tuple[WorkerId, WorkerId]  # prefill, decode


@dataclass(frozen=True, slots=True)
class _Bar:
    until_s: float
    length_s: float


class BarredPairs:
    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._bars: dict[Pair, _Bar] = {}

    def bar(self, pair: Pair, now_s: float) -> float:
        """Bar a pair; returns until when. A pair that is barred already is not barred longer:
        requests that were under way together fail together."""
        last = self._bars.get(pair)
        if last is not None and now_s < last.until_s:
            return last.until_s
        length_s = self._first_s if last is None else min(2 * last.length_s, self._longest_s)
        self._bars[pair] = _Bar(now_s + length_s, length_s)
        return now_s + length_s

    def clear(self, pair: Pair) -> None:
        """KV went through."""
        self._bars.pop(pair, None)

    def forget(self, worker_id: WorkerId) -> None:
        """The worker is gone; another incarnation starts with a clean record."""
        self._bars = {pair: bar for pair, bar in self._bars.items() if worker_id not in pair}

    def active(self, now_s: float) -> frozenset[Pair]:
        return frozenset(pair for pair, bar in self._bars.items() if now_s < bar.until_s)
