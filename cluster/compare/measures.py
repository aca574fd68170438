"""What a turn comes to: latencies, goodput, KV moved, and gaps told apart by who computed prompts.

A gap of a stream is *disturbed* if it overlaps the computation of another request's prompt, as far
as the client can tell from that request's ledger and the arrival of its first token. Goodput counts
requests whose TTFT and whose mean gap between tokens both hold (DistServe, OSDI 2024). Pure.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.load.percentiles import percentile
from cluster.load.records import RequestRecord, load_measures


@dataclass(frozen=True, slots=True)
class Slo:
    ttft_s: float
    itl_s: float

    def is_met(self, record: RequestRecord) -> bool:
        if record.error or not record.arrivals:
            return False
        num_gaps = record.num_tokens - 1
        mean_gap_s = (record.arrivals[-1][0] - record.arrivals[0][0]) / max(num_gaps, 1)
        return record.ttft_s <= self.ttft_s and mean_gap_s <= self.itl_s


def turn_measures(records: Sequence[RequestRecord], slo: Slo) -> dict[str, float]:
    """By name, with units in it; counts are whole numbers. Empty if no request succeeded."""
    measures = load_measures(records)
    if not measures:
        return {}
    span_s = max(r.ended_s for r in records) - min(r.due_s for r in records)
    num_met = sum(slo.is_met(record) for record in records)
    disturbed_s, quiet_s = told_apart(records)
    measures["goodput requests/s"] = num_met / span_s
    measures["SLOs met %"] = 100 * num_met / len(records)
    for name, gaps_s in (("quiet", quiet_s), ("disturbed", disturbed_s)):
        if gaps_s:
            measures[f"ITL {name} p50 ms"] = statistics.median(gaps_s) * 1e3
            measures[f"ITL {name} p99 ms"] = percentile(gaps_s, 99) * 1e3
    if disturbed_s or quiet_s:
        share = len(disturbed_s) / (len(disturbed_s) + len(quiet_s))
        measures["gaps disturbed %"] = 100 * share
    ledgers = [record.timing for record in records if record.timing]
    measures["KV moved MB"] = sum(timing.kv_bytes for timing in ledgers) / 1e6
    measures["prompt tokens cached"] = sum(timing.prefill_cached_tokens for timing in ledgers)
    return measures


def prefill_spans(records: Sequence[RequestRecord]) -> list[tuple[float, float, int]]:
    """(start, end, index of the record) of each prompt's computation on the client's clock, s."""
    spans: list[tuple[float, float, int]] = []
    for index, record in enumerate(records):
        if record.timing is None or not record.arrivals:
            continue
        end_s = record.arrivals[0][0] - record.timing.first_token_return_s
        spans.append((end_s - record.timing.prefill_compute_s, end_s, index))
    return sorted(spans)


def told_apart(records: Sequence[RequestRecord]) -> tuple[list[float], list[float]]:
    """(disturbed, quiet) gaps of requests that succeeded, in seconds."""
    spans = prefill_spans(records)
    starts_s = [start_s for start_s, _, _ in spans]
    longest_s = max((end_s - start_s for start_s, end_s, _ in spans), default=0.0)
    disturbed_s: list[float] = []
    quiet_s: list[float] = []
    for index, record in enumerate(records):
        if record.error:
            continue
        for end_s, gap_s in record.gaps:
            first = bisect_left(starts_s, end_s - gap_s - longest_s)
            last = bisect_left(starts_s, end_s)
            overlaps = any(
                owner != index and stop_s > end_s - gap_s for _, stop_s, owner in spans[first:last]
            )
            (disturbed_s if overlaps else quiet_s).append(gap_s)
    return disturbed_s, quiet_s
