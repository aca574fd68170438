"""The ledger of a request as lines for people: where the time to the first two tokens went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pdserve.request_timing import RequestTiming


def timing_of(ledger: Mapping[str, Any]) -> RequestTiming:
    """From the ``pdserve`` object of an HTTP answer; sums and unknown fields are left out."""
    known = {field.name for field in fields(RequestTiming)}
    return RequestTiming(**{name: value for name, value in ledger.items() if name in known})


def ledger_lines(timing: RequestTiming) -> list[str]:
    """Parts that add up, each in milliseconds."""
    first = {
        "receive": timing.receive_s,
        "tokenize": timing.tokenize_s,
        "queue": timing.queue_s,
        "prefill queue": timing.prefill_queue_s,
        "prefill": timing.prefill_compute_s,
        "return": timing.first_token_return_s,
        "send": timing.first_token_send_s,
    }
    lines = [f"TTFT {_ms(timing.ttft_s)} ms = {_sum(first)}"]
    if timing.before_face_s:
        lines.append(
            f"{_ms(timing.before_face_s)} ms before the face, as its sender states"
            f" (X-Request-Start): {_ms(timing.client_ttft_s)} ms to the first token in all"
        )
    if timing.decode_worker and timing.num_generated_tokens > 1:
        second = {
            "KV exposed": timing.kv_exposed_s,
            "decode queue": timing.decode_queue_s,
            "decode step": timing.decode_first_step_s,
            "return": timing.token_return_s,
        }
        lines.append(f"gap to token 2 {_ms(timing.first_gap_s)} ms = {_sum(second)}")
    cached = timing.prefill_cached_tokens
    already = f" ({cached} of them cached)" if cached else ""
    lines.append(
        f"{timing.num_prompt_tokens} prompt{already} and {timing.num_generated_tokens} generated "
        f"tokens in {timing.total_s:.2f} s, {timing.num_dispatches} dispatch(es)"
    )
    return lines + timing.explanation.splitlines()


def kv_line(timing: RequestTiming) -> str:
    """What travelled between the workers."""
    kept = f"{timing.kv_cached_tokens} tokens were there already"
    if timing.kv_bytes == 0 and timing.kv_cached_tokens:
        return f"KV: none travelled to {timing.decode_worker}, {kept}"
    if timing.kv_bytes == 0:
        where = timing.decode_worker or timing.prefill_worker or "one worker"
        return f"KV: none, computed and used on {where}"
    return (
        f"KV: {timing.kv_bytes:,} bytes from {timing.prefill_worker} to {timing.decode_worker} "
        f"({timing.kv_tokens} tokens, {_way(timing)}, {_ms(timing.kv_transfer_s)} ms)"
        + (f"; {kept}" if timing.kv_cached_tokens else "")
    )


def _way(timing: RequestTiming) -> str:
    words = timing.kv_transport + (f" as {timing.kv_coding}" if timing.kv_coding else "")
    return words + (f", not {timing.kv_passed_over}" if timing.kv_passed_over else "")


def _sum(parts: Mapping[str, float]) -> str:
    return " + ".join(f"{name} {_ms(value_s)}" for name, value_s in parts.items())


def _ms(value_s: float) -> str:
    return f"{value_s * 1e3:.1f}"
