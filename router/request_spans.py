"""The spans of one request as the router knows it: the request itself, and its parts there.

    request                                         arrival to end
      router.before_face                            before it, as X-Request-Start states
      router.receive  router.tokenize  router.queue
      router.prefill                                dispatch to first token at the router
      router.first_token_send
      router.decode                                 first token to end

What workers did they tell themselves, as spans under the same ``request``. Made from the ledger
when the request has ended. Attribute names beginning with ``gen_ai`` are OpenTelemetry's.
"""

from __future__ import annotations

from pdserve.public import RequestRecord
from pdserve.request_timing import RequestTiming
from pdserve.tracing import AttributeValue, Span, Tracer
from pdserve.types import FinishReason


def record_request(
    tracer: Tracer, record: RequestRecord, *, context: str, parent: str, arrived_s: float,
    model: str,
) -> None:  # fmt: skip
    """``context`` is the request's own, given to the workers; ``parent`` what its client sent."""
    if not tracer.traces(context):
        return
    timing = record.timing
    failed = record.outcome not in {reason.value for reason in FinishReason}
    tracer.record(
        Span(
            "request", context, parent, arrived_s, arrived_s + timing.total_s,
            _attributes(record, model), record.outcome if failed else "", serves=True,
        )
    )  # fmt: skip
    now_s = arrived_s
    if timing.before_face_s:
        start_s = arrived_s - timing.before_face_s
        stated = {"pdserve.stated_by": "sender"}
        tracer.part(context, "router.before_face", start_s, arrived_s, attributes=stated)
    for name, length_s in _parts(timing):
        tracer.part(context, name, now_s, now_s + length_s)
        now_s += length_s
    if timing.num_generated_tokens:
        record_send(tracer, timing, context, arrived_s)
    if timing.num_generated_tokens > 1:
        tracer.part(context, "router.decode", now_s, max(now_s, arrived_s + timing.total_s))


def record_send(tracer: Tracer, timing: RequestTiming, context: str, arrived_s: float) -> None:
    """The way of the first token from the router to the client's connection, if it is known."""
    if timing.first_token_send_s:
        end_s = arrived_s + timing.ttft_s
        tracer.part(context, "router.first_token_send", end_s - timing.first_token_send_s, end_s)


def _parts(timing: RequestTiming) -> tuple[tuple[str, float], ...]:
    """What follows on each other up to the first token at the router."""
    prefill_s = timing.prefill_queue_s + timing.prefill_compute_s + timing.first_token_return_s
    parts = (
        ("router.receive", timing.receive_s),
        ("router.tokenize", timing.tokenize_s),
        ("router.queue", timing.queue_s),
    )
    return (*parts, ("router.prefill", prefill_s)) if timing.num_generated_tokens else parts


def _attributes(record: RequestRecord, model: str) -> dict[str, AttributeValue]:
    timing = record.timing
    return {
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": timing.num_prompt_tokens,
        "gen_ai.usage.output_tokens": timing.num_generated_tokens,
        "pdserve.request_id": record.request_id,
        "pdserve.outcome": record.outcome,
        "pdserve.ttft_s": timing.ttft_s,
        "pdserve.dispatches": timing.num_dispatches,
        "pdserve.prefill_worker": timing.prefill_worker,
        "pdserve.decode_worker": timing.decode_worker,
        "pdserve.kv_bytes": timing.kv_bytes,
    }
