"""Metrics: names with units, one registry each, workers that leave disappear."""

from __future__ import annotations

from pdserve.metrics import ServiceMetrics, WorkerRow
from pdserve.public import KvPairView
from pdserve.request_timing import RequestTiming
from pdserve.types import FinishReason, Role, WorkerId, WorkerStatus

TIMING = RequestTiming(
    before_face_s=0.25, receive_s=0.0005, tokenize_s=0.001, queue_s=0.002, prefill_queue_s=0.007,
    prefill_compute_s=0.2, first_token_return_s=0.01, first_token_send_s=0.0002,
    decode_first_step_s=0.006, token_return_s=0.008,
    kv_bytes=1 << 20, kv_tokens=64, kv_transfer_s=0.05, kv_exposed_s=0.004, decode_queue_s=0.003,
    total_s=1.5, num_dispatches=3, num_prompt_tokens=64, num_generated_tokens=10,
)  # fmt: skip


def value(metrics: ServiceMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"pdserve_{name}", labels)


def test_a_finished_request_fills_the_ledger_histograms() -> None:
    metrics = ServiceMetrics()
    metrics.count_started()
    metrics.observe_token_gap(0.02)
    metrics.observe_finished(TIMING, FinishReason.LENGTH)
    sums = {
        "time_to_first_token_seconds": TIMING.ttft_s,
        "request_duration_seconds": 1.5,
        "before_face_seconds": 0.25,
        "receive_seconds": 0.0005,
        "tokenize_seconds": 0.001,
        "router_queue_seconds": 0.002,
        "prefill_queue_seconds": 0.007,
        "first_token_return_seconds": 0.01,
        "first_token_send_seconds": 0.0002,
        "decode_first_step_seconds": 0.006,
        "token_return_seconds": 0.008,
        "prefill_compute_seconds": 0.2,
        "kv_transfer_seconds": 0.05,
        "kv_transfer_bytes": 1 << 20,
        "kv_transfer_exposed_seconds": 0.004,
        "decode_queue_seconds": 0.003,
        "inter_token_latency_seconds": 0.02,
    }
    assert {name: value(metrics, f"{name}_sum") for name in sums} == sums
    assert value(metrics, "requests_total", outcome="length") == 1
    assert value(metrics, "redispatches_total") == 2
    assert value(metrics, "prompt_tokens_total") == 64
    assert value(metrics, "generated_tokens_total") == 10
    assert value(metrics, "requests_active") == 0


def test_without_a_transfer_its_histograms_stay_empty() -> None:
    metrics = ServiceMetrics()
    metrics.observe_finished(RequestTiming(total_s=1.0, num_dispatches=1), FinishReason.STOP)
    assert value(metrics, "kv_transfer_seconds_count") == 0
    assert value(metrics, "before_face_seconds_count") == 0  # nobody stated it
    assert value(metrics, "kv_transfer_bytes_count") == 0
    assert value(metrics, "request_duration_seconds_count") == 1
    assert value(metrics, "redispatches_total") == 0


def test_rows_of_workers_that_left_disappear() -> None:
    metrics = ServiceMetrics()
    status = WorkerStatus(
        total_blocks=8,
        free_blocks=5,
        reserved_blocks=2,
        num_running=3,
        num_queued=1,
        num_exported=4,
        kv_intake_bytes=4096,
        kv_intake_waits=2,
    )
    rows = [
        WorkerRow(WorkerId("p0"), Role.PREFILL, status),
        WorkerRow(WorkerId("d0"), Role.DECODE, status),
    ]
    metrics.set_workers(rows)
    metrics.set_queue_len(6)
    assert value(metrics, "worker_blocks", worker="p0", role="prefill", state="free") == 5
    assert value(metrics, "worker_blocks", worker="d0", role="decode", state="reserved") == 2
    assert value(metrics, "worker_requests", worker="d0", role="decode", state="running") == 3
    assert value(metrics, "worker_requests", worker="d0", role="decode", state="waiting") == 1
    assert value(metrics, "worker_tickets", worker="p0", role="prefill") == 4
    assert value(metrics, "worker_kv_intake_bytes", worker="d0") == 4096
    assert value(metrics, "worker_kv_intake_waits", worker="d0") == 2
    assert value(metrics, "worker_kv_intake_bytes", worker="p0") is None
    assert value(metrics, "workers", role="prefill") == 1
    assert value(metrics, "router_queue_length") == 6
    metrics.set_workers(rows[:1])
    assert value(metrics, "worker_blocks", worker="d0", role="decode", state="free") is None
    assert value(metrics, "workers", role="decode") == 0


def test_rates_of_pairs_go_with_their_workers() -> None:
    metrics = ServiceMetrics()
    pair = KvPairView(WorkerId("p0"), WorkerId("d0"), "shm", 2, 100, 1.5e9, 6e9)
    labels = {"prefill": "p0", "decode": "d0", "transport": "shm"}
    metrics.set_kv_pairs([pair, KvPairView(WorkerId("p1"), WorkerId("d0"), "tcp")])
    assert value(metrics, "kv_pair_bytes_per_second", **labels, measured="requests") == 1.5e9
    assert value(metrics, "kv_pair_bytes_per_second", prefill="p1", decode="d0",
                 transport="tcp", measured="requests") is None  # fmt: skip
    assert value(metrics, "kv_pair_bytes_per_second", **labels, measured="probe") == 6e9
    metrics.set_kv_pairs([])
    assert value(metrics, "kv_pair_bytes_per_second", **labels, measured="requests") is None


def test_two_services_share_nothing() -> None:
    first, second = ServiceMetrics(), ServiceMetrics()
    first.count_error("overloaded")
    assert value(first, "errors_total", code="overloaded") == 1
    assert value(second, "errors_total", code="overloaded") is None
    assert b'pdserve_errors_total{code="overloaded"} 1.0' in first.render()
