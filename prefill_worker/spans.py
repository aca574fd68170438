"""The spans of a prefill leg, under its request: ``prefill`` and in it waiting and computing."""

from __future__ import annotations

from pdserve.tracing import Tracer
from prefill_worker.leg import PrefillLeg


def record_prefill(tracer: Tracer, leg: PrefillLeg, ended_s: float, error: str = "") -> None:
    """From the Submit to the first token, or to the failure that came instead."""
    context = leg.attempt.request.traceparent
    if not tracer.traces(context):
        return
    started_s = ended_s if leg.started_s is None else leg.started_s
    own = tracer.part(
        context, "prefill", leg.submitted_s, ended_s, error,
        attributes={
            "pdserve.request_id": leg.request_id,
            "pdserve.epoch": leg.epoch,
            "pdserve.context_tokens": leg.attempt.num_context_tokens,
            "pdserve.cached_tokens": leg.num_cached_tokens,
        },
    )  # fmt: skip
    tracer.part(own, "prefill.queue", leg.submitted_s, started_s)
    if leg.started_s is not None:
        tracer.part(own, "prefill.compute", started_s, ended_s)
