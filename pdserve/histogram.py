"""A Prometheus histogram that costs little to fill: one request observes some fifty values.

It renders as prometheus_client's own does, of which it is the fast twin: that one takes a lock and
looks at the buckets one after the other, 2.5 us of process time a value where this takes 0.6 (13
buckets; a router has some 3 ms for a request), and tokens of one piece are one call here. Of one
thread only, without labels and exemplars.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class FastHistogram(Collector):
    def __init__(
        self, name: str, text: str, *, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        """``buckets``: upper bounds, ascending, the least not below 0; the last one is added."""
        self._name = name
        self._text = text
        self._bounds = (*buckets, math.inf)
        as_text: Callable[[float], str] = floatToGoString
        self._labels = [as_text(bound) for bound in self._bounds]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._created = time.time()
        registry.register(self)

    def observe(self, value: float, times: int = 1) -> None:
        self._sum += value * times
        self._counts[bisect_left(self._bounds, value)] += times

    def describe(self) -> Iterable[Metric]:
        return [Metric(self._name, self._text, "histogram")]

    def collect(self) -> Iterable[Metric]:
        metric = Metric(self._name, self._text, "histogram")
        totals = list(accumulate(self._counts, initial=0.0))[1:]
        for label, total in zip(self._labels, totals, strict=True):
            metric.add_sample(f"{self._name}_bucket", {"le": label}, total)
        metric.add_sample(f"{self._name}_count", {}, totals[-1])
        metric.add_sample(f"{self._name}_sum", {}, self._sum)
        metric.add_sample(f"{self._name}_created", {}, self._created)
        return [metric]
