"""Loads are scaled and cut as asked, and are the same for every setup."""

from __future__ import annotations

import pytest

from cluster.compare.traces import RecordedRequest
from cluster.compare.workload import Scaling, cut_to_fit, drawn_requests, jobs_of, scaled

BURST = [
    RecordedRequest(10.0, 1024, 8, (0, 1)),
    RecordedRequest(13.0, 600, 4, (0, 2)),
    RecordedRequest(13.0, 100, 4, ()),
    RecordedRequest(13.0, 2, 1, ()),
]


def test_times_and_lengths_are_multiplied() -> None:
    assert scaled(BURST[:2], Scaling(time=2.0, length=0.5)) == [
        RecordedRequest(0.0, 512, 4, (0, 1)),
        RecordedRequest(6.0, 300, 2, (0, 2)),
    ]
    (longer,) = scaled(BURST[:1], Scaling(length=0.5, answer=2.0))
    assert (longer.num_prompt_tokens, longer.num_output_tokens) == (512, 16)
    assert scaled(BURST[3:], Scaling(length=0.01))[0].num_prompt_tokens == 1


def test_requests_of_one_time_are_spread_in_order() -> None:
    times_s = [request.at_s for request in scaled(BURST, Scaling(spread_s=3.0, time=2.0))]
    assert times_s == [0.0, 6.0, 8.0, 10.0]
    assert [r.at_s for r in scaled(BURST, Scaling())] == [0.0, 3.0, 3.0, 3.0]


def test_what_does_not_fit_is_cut_and_counted() -> None:
    requests = [
        RecordedRequest(0.0, 90, 30), RecordedRequest(1.0, 10, 500), RecordedRequest(2.0, 10, 5),
    ]  # fmt: skip
    workload = cut_to_fit(requests, max_model_len=100)
    lengths = [(r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests]
    assert lengths == [(70, 30), (10, 50), (10, 5)]
    assert workload.num_cut == 2
    limited = cut_to_fit(requests, max_model_len=100, max_prompt_tokens=8, max_output_tokens=6)
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in limited.requests] == [
        (8, 6), (8, 6), (8, 5),
    ]  # fmt: skip


def test_equal_blocks_are_equal_tokens_and_nothing_else_is() -> None:
    workload = cut_to_fit(BURST, max_model_len=10_000)
    first, second, third, _ = (job.prompt_ids for job in jobs_of(workload, 1000, "s"))
    assert [len(ids) for ids in (first, second, third)] == [1024, 600, 100]
    assert first[:512] == second[:512]
    assert first[512:600] != second[512:]
    assert third != first[:100]


def test_the_seed_makes_the_load() -> None:
    workload = cut_to_fit(drawn_requests(20, 5, 3.0, 4, "a"), max_model_len=100)
    assert jobs_of(workload, 50, "a") == jobs_of(workload, 50, "a")
    assert jobs_of(workload, 50, "a") != jobs_of(workload, 50, "b")
    assert all(0 <= token < 50 for job in jobs_of(workload, 50, "a") for token in job.prompt_ids)
    assert workload.span_s == pytest.approx(sum(_gaps(workload.offsets_s)) + workload.offsets_s[0])


def _gaps(times_s: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(times_s[:-1], times_s[1:], strict=True)]
