"""Who wins at what: the side that is better at each measure, by the sense of the measure."""

from __future__ import annotations

from cluster.compare.verdict import verdict_lines


def test_each_measure_is_judged_by_its_sense() -> None:
    ours = [{"TTFT p50 ms": 300.0, "ITL p99 ms": 20.0, "SLOs met %": 90.0, "output tokens/s": 99.0}]
    theirs = [
        {"TTFT p50 ms": 100.0, "ITL p99 ms": 200.0, "SLOs met %": 50.0, "output tokens/s": 100.0}
    ]
    assert verdict_lines(ours, theirs, "a", "b") == [
        "'a' beside 'b':",
        "  wins at   ITL p99 ms 20.0 instead of 200, SLOs met % 90.0 instead of 50.0",
        "  loses at  TTFT p50 ms 300 instead of 100",
        "  even at   output tokens/s 99.0 instead of 100",
    ]


def test_rounds_count_by_their_median_and_what_is_missing_is_left_out() -> None:
    ours = [{"TTFT p50 ms": value, "ITL p99 ms": 1.0} for value in (1.0, 50.0, 900.0)]
    lines = verdict_lines(ours, [{"TTFT p50 ms": 100.0}, {}], "a", "b")
    assert lines[1:] == ["  wins at   TTFT p50 ms 50.0 instead of 100"]
