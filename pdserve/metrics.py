"""What the service counts and measures, for Prometheus.

One ``ServiceMetrics`` a service, over a registry of its own, so that two services in one process
(tests) do not share figures. Methods are named by what happened; names and labels are this module's
affair. It does not know who calls: the text service reports requests (each exactly once), the HTTP
face refreshes the gauges when it is asked for the metrics. Not covered: traces, per-worker
histograms, multi-process registries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from pdserve.histogram import FastHistogram
from pdserve.public import KvPairView
from pdserve.request_timing import RequestTiming
from pdserve.types import FinishReason, Role, WorkerId, WorkerStatus

METRICS_CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_WAIT_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_GAP_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5,
    10.0,
)  # fmt: skip
_TOTAL_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_KV_BUCKETS_BYTES = tuple(float(4**power) for power in range(8, 18))  # 64 KiB to 16 GiB


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker as the router sees it now."""

    worker_id: WorkerId
    role: Role
    status: WorkerStatus


class ServiceMetrics:
    """All series of one service, named ``pdserve_*`` with their units."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = _RequestSeries(self.registry)
        self._workers = _WorkerSeries(self.registry)
        self._kv_rate = Gauge(
            "pdserve_kv_pair_bytes_per_second",
            "KV between two workers: in the latest requests (waits included), or in a probe",
            ["prefill", "decode", "transport", "measured"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        """Everything in the text format (``METRICS_CONTENT_TYPE``)."""
        return generate_latest(self.registry)

    def count_started(self) -> None:
        """A request was taken on; one of the three ``observe_*`` outcomes will follow."""
        self._requests.active.inc()

    def observe_token_gap(self, gap_s: float, times: int = 1) -> None:
        """Time between two tokens of one request, as they leave the router (ITL)."""
        self._requests.token_gap.observe(gap_s, times)

    def observe_finished(self, timing: RequestTiming, reason: FinishReason) -> None:
        """A request ended well."""
        self._requests.count_end(reason.value, timing)
        self._requests.observe_ledger(timing)

    def observe_cancelled(self, timing: RequestTiming) -> None:
        """The client left or took it back."""
        self._requests.count_end("cancelled", timing)

    def observe_failed(self, timing: RequestTiming, code: str) -> None:
        """A request that was taken on ended in an error (``code`` as in errors.py)."""
        self._requests.count_end("failed", timing)
        self.count_error(code)

    def count_refused(self, code: str) -> None:
        """A request was turned down before it was queued (``code`` as in errors.py)."""
        self._requests.requests.labels("refused").inc()
        self.count_error(code)

    def count_error(self, code: str) -> None:
        """An error that is not the end of a request counted elsewhere."""
        self._requests.errors.labels(code).inc()

    def set_queue_len(self, num_queued: int) -> None:
        """Requests waiting at the router for a dispatch."""
        self._workers.queue_len.set(num_queued)

    def set_workers(self, rows: Sequence[WorkerRow]) -> None:
        """Replace all gauges of workers: those of workers that have left disappear."""
        self._workers.replace(rows)

    def set_kv_pairs(self, pairs: Sequence[KvPairView]) -> None:
        """Replace the gauge of pairs: those of workers that have left disappear."""
        self._kv_rate.clear()
        for pair in pairs:
            labels = (pair.prefill_worker, pair.decode_worker, pair.transport)
            if pair.read_bytes_per_s:
                self._kv_rate.labels(*labels, "requests").set(pair.read_bytes_per_s)
            if pair.probe_bytes_per_s:
                self._kv_rate.labels(*labels, "probe").set(pair.probe_bytes_per_s)


class _RequestSeries:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "pdserve_requests", "Requests by how they ended", ["outcome"], registry=registry
        )
        for outcome in (
            *(reason.value for reason in FinishReason),
            "cancelled",
            "failed",
            "refused",
        ):
            self.requests.labels(outcome)
        self.errors = Counter("pdserve_errors", "Errors by code", ["code"], registry=registry)
        self.redispatches = Counter(
            "pdserve_redispatches", "Attempts beyond the first of a request", registry=registry
        )
        self.prefills = Counter(
            "pdserve_prefills",
            "Requests by where their prompt was computed, and why there",
            ["prefill_place"],
            registry=registry,
        )
        self.cancellations = Counter(
            "pdserve_cancellations", "Requests cancelled by their client", registry=registry
        )
        self.prompt_tokens = Counter("pdserve_prompt_tokens", "Prompt tokens", registry=registry)
        self.cached_prompt_tokens = Counter(
            "pdserve_cached_prompt_tokens",
            "Prompt tokens whose KV a prefill (or colocated) worker had already",
            registry=registry,
        )
        self.cached_kv_tokens = Counter(
            "pdserve_cached_kv_tokens",
            "Context tokens whose KV a decode worker had already, so that it did not travel",
            registry=registry,
        )
        self.generated_tokens = Counter(
            "pdserve_generated_tokens", "Generated tokens", registry=registry
        )
        self.active = Gauge(
            "pdserve_requests_active", "Requests taken on and not ended", registry=registry
        )
        self.token_gap = FastHistogram(
            "pdserve_inter_token_latency_seconds",
            "Time between two tokens of a request",
            buckets=_GAP_BUCKETS_S,
            registry=registry,
        )
        self._ledger = _ledger_histograms(registry)
        self._kv_bytes = FastHistogram(
            "pdserve_kv_transfer_bytes",
            "KV cache moved between workers for a request",
            buckets=_KV_BUCKETS_BYTES,
            registry=registry,
        )

    def count_end(self, outcome: str, timing: RequestTiming) -> None:
        self.active.dec()
        self.requests.labels(outcome).inc()
        if outcome == "cancelled":
            self.cancellations.inc()
        if timing.prefill_place:
            self.prefills.labels(timing.prefill_place).inc()
        for counter, number in (
            (self.redispatches, timing.num_dispatches - 1),
            (self.prompt_tokens, timing.num_prompt_tokens),
            (self.generated_tokens, timing.num_generated_tokens),
            (self.cached_prompt_tokens, timing.prefill_cached_tokens),
            (self.cached_kv_tokens, timing.kv_cached_tokens),
        ):
            if number > 0:
                counter.inc(number)

    def observe_ledger(self, timing: RequestTiming) -> None:
        self._ledger["ttft"].observe(timing.ttft_s)
        self._ledger["total"].observe(timing.total_s)
        if timing.before_face_s:
            self._ledger["before_face"].observe(timing.before_face_s)
        self._ledger["receive"].observe(timing.receive_s)
        self._ledger["tokenize"].observe(timing.tokenize_s)
        self._ledger["queue"].observe(timing.queue_s)
        self._ledger["prefill_queue"].observe(timing.prefill_queue_s)
        self._ledger["prefill"].observe(timing.prefill_compute_s)
        self._ledger["first_return"].observe(timing.first_token_return_s)
        self._ledger["first_send"].observe(timing.first_token_send_s)
        if timing.num_generated_tokens > 1:
            self._ledger["first_step"].observe(timing.decode_first_step_s)
            self._ledger["return"].observe(timing.token_return_s)
        if timing.kv_tokens or timing.kv_cached_tokens:  # else colocated, or one token only
            self._ledger["kv_transfer"].observe(timing.kv_transfer_s)
            self._ledger["kv_exposed"].observe(timing.kv_exposed_s)
            self._ledger["decode_queue"].observe(timing.decode_queue_s)
            self._kv_bytes.observe(timing.kv_bytes)


def _ledger_histograms(registry: CollectorRegistry) -> dict[str, FastHistogram]:
    definitions: tuple[tuple[str, str, str, Iterable[float]], ...] = (
        ("ttft", "time_to_first_token", "Request taken to first token out", _WAIT_BUCKETS_S),
        ("total", "request_duration", "Request taken to its last token out", _TOTAL_BUCKETS_S),
        (
            "before_face",
            "before_face",
            "Before the arrival, as X-Request-Start states",
            _WAIT_BUCKETS_S,
        ),
        ("receive", "receive", "Arrival to read and understood", _WAIT_BUCKETS_S),
        ("tokenize", "tokenize", "Chat template, token ids, limits", _WAIT_BUCKETS_S),
        ("queue", "router_queue", "Waiting at the router for a dispatch", _WAIT_BUCKETS_S),
        ("prefill_queue", "prefill_queue", "Submit to first chunk", _WAIT_BUCKETS_S),
        ("prefill", "prefill_compute", "First chunk to first token", _WAIT_BUCKETS_S),
        ("first_return", "first_token_return", "Rest of the way there and back", _WAIT_BUCKETS_S),
        ("first_send", "first_token_send", "Router to the connection", _WAIT_BUCKETS_S),
        ("kv_transfer", "kv_transfer", "First KV frame to verified commit", _WAIT_BUCKETS_S),
        ("kv_exposed", "kv_transfer_exposed", "First token to commit: not hidden", _WAIT_BUCKETS_S),
        ("decode_queue", "decode_queue", "Commit to first decode step", _WAIT_BUCKETS_S),
        ("first_step", "decode_first_step", "First decode step", _WAIT_BUCKETS_S),
        ("return", "token_return", "Rest of the gap between tokens 1 and 2", _WAIT_BUCKETS_S),
    )
    return {
        key: FastHistogram(
            f"pdserve_{name}_seconds", text, buckets=tuple(buckets), registry=registry
        )
        for key, name, text, buckets in definitions
    }


class _WorkerSeries:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue_len = Gauge(
            "pdserve_router_queue_length", "Requests waiting for a dispatch", registry=registry
        )
        self._workers = Gauge("pdserve_workers", "Workers by role", ["role"], registry=registry)
        self._blocks = Gauge(
            "pdserve_worker_blocks",
            "KV blocks of a worker: free, reserved (promised), cached (held or free), total",
            ["worker", "role", "state"],
            registry=registry,
        )
        self._requests = Gauge(
            "pdserve_worker_requests",
            "Requests on a worker: running, waiting, parked",
            ["worker", "role", "state"],
            registry=registry,
        )
        self._tickets = Gauge(
            "pdserve_worker_tickets",
            "KV tickets whose blocks a worker holds for a reader",
            ["worker", "role"],
            registry=registry,
        )
        self._intake_bytes = Gauge(
            "pdserve_worker_kv_intake_bytes",
            "KV a decode worker has taken in since its start",
            ["worker"],
            registry=registry,
        )
        self._intake_waits = Gauge(
            "pdserve_worker_kv_intake_waits",
            "Frames of KV that waited for a step to end (intake_bytes_per_step) since its start",
            ["worker"],
            registry=registry,
        )

    def replace(self, rows: Sequence[WorkerRow]) -> None:
        every = (self._blocks, self._requests, self._tickets, self._intake_bytes,
                 self._intake_waits)  # fmt: skip
        for series in every:
            series.clear()
        for role in Role:
            self._workers.labels(role.value).set(sum(row.role is role for row in rows))
        for row in rows:
            self._set_row(row)

    def _set_row(self, row: WorkerRow) -> None:
        status, labels = row.status, (row.worker_id, row.role.value)
        self._blocks.labels(*labels, "free").set(status.free_blocks)
        self._blocks.labels(*labels, "reserved").set(status.reserved_blocks)
        self._blocks.labels(*labels, "cached").set(status.cached_blocks)
        self._blocks.labels(*labels, "total").set(status.total_blocks)
        self._requests.labels(*labels, "running").set(status.num_running)
        self._requests.labels(*labels, "waiting").set(status.num_queued)
        self._requests.labels(*labels, "parked").set(status.num_parked)
        self._tickets.labels(*labels).set(status.num_exported)
        if row.role is Role.DECODE:
            self._intake_bytes.labels(row.worker_id).set(status.kv_intake_bytes)
            self._intake_waits.labels(row.worker_id).set(status.kv_intake_waits)
