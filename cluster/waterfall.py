"""The ledger of one request drawn in lines of text: each part a bar, where it lay in time.

    TTFT 24.1 ms, gap to token 2 11.9 ms
      receive        0.1 ms |▏                                                 |
      prefill       20.2 ms |   ██████████████████████████████                 |
      KV transfer    9.0 ms |                   ░░░░░░░░░░░░░░░░               |

Parts that add up are solid; the KV transfer, which lies beside them, is light. The drawing ends
with the second token (or the first, if there are no more): the rest is told in words. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.ledger_text import kv_line, ledger_lines
from pdserve.public import RequestRecord
from pdserve.request_timing import RequestTiming

_EIGHTHS = " ▏▎▍▌▋▊▉"
_LABEL_WIDTH = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of the ledger: from ``start_s`` after its sender began. ``beside``: not of the sum."""

    label: str
    start_s: float
    length_s: float
    beside: bool = False


def bars_of(timing: RequestTiming) -> list[Bar]:
    """In order of time. Parts before the first token end at the TTFT, those after it follow on."""
    bars: list[Bar] = []
    now_s = timing.before_face_s
    if now_s:
        bars.append(Bar("before face, stated", 0.0, now_s))
    for label, length_s in (
        ("receive", timing.receive_s),
        ("tokenize", timing.tokenize_s),
        ("router queue", timing.queue_s),
        ("prefill queue", timing.prefill_queue_s),
        ("prefill", timing.prefill_compute_s),
        ("return", timing.first_token_return_s),
    ):
        bars.append(Bar(label, now_s, length_s))
        now_s += length_s
    at_router_s = now_s  # the first token; the second's gap begins here, beside the sending
    bars.append(Bar("send", at_router_s, timing.first_token_send_s))
    if not timing.decode_worker or timing.num_generated_tokens < 2:
        return bars
    if timing.kv_transfer_s > 0:
        start_s = max(0.0, at_router_s + timing.kv_exposed_s - timing.kv_transfer_s)
        bars.append(Bar("KV transfer", start_s, timing.kv_transfer_s, beside=True))
    for label, length_s in (
        ("KV exposed", timing.kv_exposed_s),
        ("decode queue", timing.decode_queue_s),
        ("decode step", timing.decode_first_step_s),
        ("return", timing.token_return_s),
    ):
        bars.append(Bar(label, now_s, length_s))
        now_s += length_s
    return bars


def waterfall_lines(record: RequestRecord, width: int) -> list[str]:
    """``width``: characters of a bar that lasts as long as all of them."""
    timing = record.timing
    where = " -> ".join(dict.fromkeys(filter(None, (timing.prefill_worker, timing.decode_worker))))
    bars = bars_of(timing)
    span_s = max(bar.start_s + bar.length_s for bar in bars)
    lines = [f"{record.request_id}: {record.outcome}" + (f", {where}" if where else "")]
    for bar in bars:
        label = bar.label.ljust(_LABEL_WIDTH)
        drawn = _drawn(bar, span_s, width)
        lines.append(f"  {label}{bar.length_s * 1e3:>10.1f} ms |{drawn}|")
    rest_s = max(0.0, timing.before_face_s + timing.total_s - span_s)
    if timing.num_generated_tokens > 2:
        label = "later tokens".ljust(_LABEL_WIDTH)
        lines.append(f"  {label}{rest_s * 1e3:>10.1f} ms  (not drawn)")
    return [*lines, *ledger_lines(timing), kv_line(timing)]


def _drawn(bar: Bar, span_s: float, width: int) -> str:
    """At least a thin line for what lasted at all."""
    if span_s <= 0 or bar.length_s <= 0:
        return " " * width
    start = min(int(bar.start_s / span_s * width), width - 1)
    length = bar.length_s / span_s * width
    if bar.beside:
        drawn = "░" * max(1, round(length))
    else:
        whole, part = int(length), int(length % 1 * len(_EIGHTHS))
        drawn = "█" * whole + (_EIGHTHS[part] if part else "")
    return (" " * start + (drawn or _EIGHTHS[1]))[:width].ljust(width)
