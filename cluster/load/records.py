"""What a client saw of one request, and what many of them add up to.

All times are seconds on the client's clock since the start of the run. Latency counts from when a
request was due, not from when the client got round to sending it, so that a client or service that
falls behind cannot hide it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.load.percentiles import percentiles_ms
from pdserve.request_timing import RequestTiming


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream when it arrives; ``timing`` comes with the last one, if at all."""

    num_tokens: int
    timing: RequestTiming | None = None


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """``arrivals``: (time, tokens) of each chunk that held tokens. ``error``: its code, or ""."""

    kind: str
    due_s: float
    sent_s: float
    ended_s: float
    arrivals: tuple[tuple[float, int], ...]
    error: str = ""
    timing: RequestTiming | None = None

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def ttft_s(self) -> float:
        """Only of a request that got a token."""
        return self.arrivals[0][0] - self.due_s

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """(end, length) of each gap between two chunks that held tokens."""
        times = [time_s for time_s, _ in self.arrivals]
        return [
            (later, later - earlier) for earlier, later in zip(times[:-1], times[1:], strict=True)
        ]


def load_measures(records: Sequence[RequestRecord]) -> dict[str, float]:
    """Latencies of requests that succeeded, rates over the whole run, medians of the ledger."""
    done = [record for record in records if not record.error]
    if not done:
        return {}
    span_s = max(r.ended_s for r in records) - min(r.sent_s for r in records)
    gaps_s = [gap_s for record in done for _, gap_s in record.gaps]
    return {
        **percentiles_ms("TTFT", [record.ttft_s for record in done]),
        **percentiles_ms("ITL", gaps_s, (50, 90, 99, 100)),
        **percentiles_ms("E2E", [record.e2e_s for record in done]),
        "output tokens/s": sum(record.num_tokens for record in done) / span_s,
        "requests/s": len(done) / span_s,
        "requests done": len(done),
        **ledger_measures(done),
    }


def ledger_measures(records: Sequence[RequestRecord]) -> dict[str, float]:
    """Medians of what the service itself measured; nothing where it sent no ledger."""
    ledgers = [record.timing for record in records if record.timing is not None]
    if not ledgers:
        return {}
    medians = {
        "prefill p50 ms": statistics.median(t.prefill_compute_s for t in ledgers) * 1e3,
        "router and prefill queue p50 ms": statistics.median(
            t.queue_s + t.prefill_queue_s for t in ledgers
        ) * 1e3,
    }  # fmt: skip
    if moved := [timing for timing in ledgers if timing.kv_bytes]:
        medians |= {
            "KV p50 MB": statistics.median(t.kv_bytes for t in moved) / 1e6,
            "KV transfer p50 ms": statistics.median(t.kv_transfer_s for t in moved) * 1e3,
            "KV exposed p50 ms": statistics.median(t.kv_exposed_s for t in moved) * 1e3,
        }
    return medians


def count_errors(records: Sequence[RequestRecord]) -> dict[str, int]:
    return dict(Counter(record.error for record in records if record.error))
