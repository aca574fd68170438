"""The spans of a decode leg, under its request: ``kv.transfer`` and ``decode`` with its first step.

A leg that computed its own prompt has ``prefill`` instead of a transfer.
"""

from __future__ import annotations

from decode_worker.leg import DecodeLeg
from engine.loop import StepTiming
from kvtransfer.coding import EXACT
from pdserve.tracing import Tracer
from pdserve.types import KvTiming


def record_transfer(tracer: Tracer, leg: DecodeLeg, timing: KvTiming, now_s: float) -> None:
    """The KV is here and verified."""
    tracer.part(
        leg.attempt.request.traceparent, "kv.transfer", now_s - timing.transfer_s, now_s,
        attributes={
            "pdserve.kv_transport": timing.transport,
            "pdserve.kv_coding": timing.coding or EXACT,
            "pdserve.kv_passed_over": timing.passed_over,
            "pdserve.kv_bytes": timing.num_bytes,
            "pdserve.kv_tokens": timing.num_tokens,
            "pdserve.cached_tokens": timing.num_cached_tokens,
        },
    )  # fmt: skip


def record_own_prefill(tracer: Tracer, leg: DecodeLeg, step: StepTiming) -> None:
    started_s = step.started_s if leg.started_s is None else leg.started_s
    own = tracer.part(
        leg.attempt.request.traceparent, "prefill", leg.submitted_s, step.ended_s,
        attributes={
            "pdserve.context_tokens": leg.attempt.num_context_tokens,
            "pdserve.cached_tokens": leg.num_cached_tokens,
        },
    )  # fmt: skip
    tracer.part(own, "prefill.queue", leg.submitted_s, started_s)
    tracer.part(own, "prefill.compute", started_s, step.ended_s)


def record_decode(tracer: Tracer, leg: DecodeLeg, now_s: float, error: str = "") -> None:
    """From the KV's (or the own prompt's) completion to the leg's end; nothing before that."""
    context = leg.attempt.request.traceparent
    if not leg.ready_s or not tracer.traces(context):
        return
    num_tokens = 0 if leg.sequence is None else leg.sequence.num_generated
    own = tracer.part(
        context, "decode", leg.ready_s, now_s, error,
        attributes={"pdserve.request_id": leg.request_id, "pdserve.epoch": leg.epoch,
           "pdserve.generated_tokens": num_tokens},
    )  # fmt: skip
    if leg.first_step is not None:
        tracer.part(own, "decode.queue", leg.ready_s, leg.first_step.started_s)
        tracer.part(own, "decode.first_step", leg.first_step.started_s, leg.first_step.ended_s)
