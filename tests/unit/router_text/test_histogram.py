"""The fast histogram against its twin, prometheus_client's own."""

from __future__ import annotations

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from pdserve.histogram import FastHistogram

BUCKETS = (0.001, 0.0025, 0.1, 1.0, 10.0)


def lines(registry: CollectorRegistry) -> list[str]:
    """But for the moments at which the two were made."""
    text = generate_latest(registry).decode()
    return [line for line in text.splitlines() if not line.startswith("x_seconds_created")]


def test_it_renders_as_its_twin() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastHistogram("x_seconds", "a text", buckets=BUCKETS, registry=ours)
    plain = Histogram("x_seconds", "a text", buckets=BUCKETS, registry=theirs)
    assert lines(ours) == lines(theirs)
    draw = random.Random(1)
    for _ in range(300):
        value = draw.choice((0.0, *BUCKETS, draw.uniform(0, 0.01), draw.uniform(0, 30), 1e9))
        times = draw.choice((1, 1, 3))
        fast.observe(value, times)
        for _ in range(times):
            plain.observe(value)
        told, twin = lines(ours), lines(theirs)
        sums = [line for line in told if line.startswith("x_seconds_sum")]
        twin_sums = [line for line in twin if line.startswith("x_seconds_sum")]
        assert [line for line in told if line not in sums] == [
            line for line in twin if line not in twin_sums
        ]
        assert float(sums[0].split()[1]) == pytest.approx(float(twin_sums[0].split()[1]))


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    FastHistogram("x_seconds", "a text", buckets=BUCKETS, registry=registry)
    with pytest.raises(ValueError, match="x_seconds"):
        FastHistogram("x_seconds", "a text", buckets=BUCKETS, registry=registry)
