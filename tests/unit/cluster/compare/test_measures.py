"""Goodput counts both SLOs; gaps are told apart by whose prompt was computed meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.compare.measures import Slo, prefill_spans, told_apart, turn_measures
from cluster.load.records import RequestRecord
from pdserve.request_timing import RequestTiming


def record(
    due_s: float, times_s: list[float], *, prefill_s: float = 0.0, error: str = ""
) -> RequestRecord:
    timing = RequestTiming(prefill_compute_s=prefill_s, first_token_return_s=0.5, kv_bytes=10**6)
    arrivals = tuple((time_s, 1) for time_s in times_s)
    return RequestRecord("load", due_s, due_s, times_s[-1], arrivals, error, timing)


STREAM = record(0.0, [1.0, 2.0, 3.0, 4.0, 5.0], prefill_s=0.5)
LONG = record(2.0, [4.0, 4.1], prefill_s=1.2)  # its prompt is computed from 2.3 to 3.5


def test_prompts_are_placed_on_the_clients_clock() -> None:
    spans = prefill_spans([LONG, STREAM])
    assert [(pytest.approx(a), pytest.approx(b), i) for a, b, i in spans] == [
        (0.0, 0.5, 1),
        (2.3, 3.5, 0),
    ]


def test_a_gap_is_disturbed_by_another_requests_prompt_only() -> None:
    disturbed_s, quiet_s = told_apart([STREAM, LONG])
    assert disturbed_s == [1.0, 1.0]  # those that end at 3 and 4
    assert quiet_s == [1.0, 1.0, pytest.approx(0.1)]
    assert told_apart([STREAM]) == ([], [1.0] * 4)


def test_goodput_needs_both() -> None:
    records = [STREAM, LONG, replace(LONG, error="overloaded")]
    both = turn_measures(records, Slo(ttft_s=1.5, itl_s=1.0))
    assert both["goodput requests/s"] == pytest.approx(1 / 5.0)
    assert both["SLOs met %"] == pytest.approx(100 / 3)
    assert turn_measures(records, Slo(ttft_s=2.0, itl_s=0.5))["goodput requests/s"] == (
        pytest.approx(1 / 5.0)  # the long one: its answer is fast, its prompt is just in time
    )
    assert turn_measures(records, Slo(ttft_s=0.5, itl_s=0.5))["goodput requests/s"] == 0.0


def test_measures_name_what_moved() -> None:
    measures = turn_measures([STREAM, LONG], Slo(1.0, 1.0))
    assert measures["KV moved MB"] == pytest.approx(2.0)
    assert measures["gaps disturbed %"] == pytest.approx(40.0)
    assert turn_measures([replace(LONG, error="x")], Slo(1.0, 1.0)) == {}
