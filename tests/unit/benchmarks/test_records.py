"""What records add up to: latency from when a request was due, all gaps, errors apart."""

import pytest

from benchmarks.interference import ALONE, LONG, STEADY, InterferencePlan, interference_measures
from benchmarks.timeline import HEAD, timeline_rows
from cluster.load.records import RequestRecord, count_errors, load_measures
from pdserve.request_timing import RequestTiming


def record(
    *times_s: float, due_s: float = 0.0, sent_s: float = 0.0, kind: str = "load", error: str = "",
    timing: RequestTiming | None = None,
) -> RequestRecord:  # fmt: skip
    arrivals = tuple((time_s, 1) for time_s in times_s)
    ended_s = times_s[-1] if times_s else sent_s
    return RequestRecord(kind, due_s, sent_s, ended_s, arrivals, error, timing)


def test_latency_counts_from_when_the_request_was_due() -> None:
    late = record(3.0, 4.0, due_s=1.0, sent_s=2.5)
    assert late.ttft_s == 2.0
    assert late.e2e_s == 3.0


def test_every_gap_counts() -> None:
    measures = load_measures([record(1.0, 2.0, 2.5), record(1.0, 5.0)])
    assert measures["ITL p50 ms"] == pytest.approx(1000)
    assert measures["ITL max ms"] == pytest.approx(4000)


def test_rates_are_of_successful_requests_over_the_whole_span() -> None:
    records = [record(1.0, 2.0), record(3.0, 4.0, sent_s=2.0), record(error="overloaded")]
    measures = load_measures(records)
    assert measures["output tokens/s"] == pytest.approx(4 / 4.0)
    assert measures["requests/s"] == pytest.approx(2 / 4.0)
    assert count_errors(records) == {"overloaded": 1}


def test_only_errors_give_no_latency() -> None:
    assert load_measures([record(error="overloaded")]) == {}


def test_kv_medians_are_of_requests_that_moved_kv() -> None:
    moved = [RequestTiming(kv_bytes=n * 10**6, kv_transfer_s=n / 1000) for n in (1, 2, 9)]
    records = [record(1.0, timing=timing) for timing in [*moved, RequestTiming()]]
    measures = load_measures(records)
    assert measures["KV p50 MB"] == pytest.approx(2)
    assert measures["KV transfer p50 ms"] == pytest.approx(2)
    assert "KV p50 MB" not in load_measures([record(1.0, timing=RequestTiming())])


def plan(**changes: float) -> InterferencePlan:
    return InterferencePlan(
        num_streams=1, steady_prompt_tokens=1, steady_output_tokens=9, long_prompt_tokens=50,
        long_output_tokens=1, every_s=3.0, phase_s=10.0, settle_s=2.0, **changes,
    )  # fmt: skip


def test_long_prompts_fall_due_within_the_loaded_phase() -> None:
    assert plan().long_offsets_s == [0.0, 3.0, 6.0, 9.0]
    assert plan().loaded_from_s == 12.0


def test_a_gap_belongs_to_the_phase_in_which_it_ends() -> None:
    steady = record(1.0, 1.9, 3.0, 11.0, 13.0, 13.5, 22.5, kind=STEADY)
    long = record(14.0, due_s=12.0, kind=LONG)
    measures = interference_measures([steady, long], plan())
    assert measures["steady ITL quiet max ms"] == pytest.approx(8000)
    assert measures["steady ITL loaded max ms"] == pytest.approx(2000)  # 9.0 ends after the phase
    assert measures["steady tokens/s quiet"] == pytest.approx(2 / 10)
    assert measures["steady tokens/s loaded"] == pytest.approx(2 / 10)
    assert measures["long TTFT p50 ms"] == pytest.approx(2000)
    assert measures["long prompts done"] == 1


def test_the_rate_of_long_prompts_beside_the_one_they_have_alone() -> None:
    long = [record(14.0, due_s=12.0, kind=LONG), record(18.0, due_s=15.0, kind=LONG)]
    alone = record(31.5, due_s=30.0, kind=ALONE)
    measures = interference_measures([*long, alone], plan())
    assert measures["long TTFT alone p50 ms"] == pytest.approx(1500)
    assert measures["long prompts' rate, % of alone"] == pytest.approx(60)
    assert "long prompts' rate, % of alone" not in interference_measures(long, plan())


def test_timeline_cuts_the_run_into_slices() -> None:
    steady = record(0.5, 0.7, 1.2, kind=STEADY)
    long = record(1.9, due_s=1.1, sent_s=1.1, kind=LONG)
    rows = timeline_rows([steady, long], 1.0, STEADY)
    assert rows == [
        HEAD,
        ("0", "1", "1", "2.00", "200", "200"),
        ("1", "1", "1", "1.00", "500", "500"),
    ]
