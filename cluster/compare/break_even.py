"""From which prompt length and rate on disaggregation pays, with the arithmetic. Pure.

Colocated, a chunk of a prompt and the next token of every running stream take turns on one device,
so a stream waits for a whole chunk. Disaggregated, it does not; the price is a slower prefill
(fewer cores or devices take part) and the KV's way. With r the prefill rate (tokens/s), q the quiet
gap (s) and C = chunk / r the time of a chunk (s):

    n_itl   prompts longer than this make a colocated stream break its gap SLO:  (slo_itl - q) r
    lambda  above this rate more than 1 in 100 gaps of a colocated stream holds a chunk. In a second
            with c chunks there are (1 - c C) / q other gaps, so c = 0.01 / (0.99 q + 0.01 C);
            a prompt of n tokens has ceil(n / chunk) chunks
    n_ttft  the prompt that an idle prefill worker just computes in time:  slo_ttft r
    full    the rate at which a prefill worker has no idle time left:  r / n

It knows one class of prompt at a time and no queueing: measured goodput is what counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.compare.measures import Slo

_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Observed:
    """One setup in one run. ``disturbed_p99_s``: 0 where no gap was disturbed."""

    name: str
    prefill_tokens_per_s: float
    quiet_gap_s: float
    disturbed_p99_s: float
    exposed_s: float  # median: first token out of prefill -> KV committed at the decode worker
    goodput: float  # requests/s


def stalling_prompt_tokens(colocated: Observed, slo: Slo, chunk_tokens: int) -> float:
    """n_itl; infinite if even a whole chunk lets the gap hold."""
    tokens = max(0.0, (slo.itl_s - colocated.quiet_gap_s) * colocated.prefill_tokens_per_s)
    return math.inf if tokens >= chunk_tokens else tokens


def stalling_rate(colocated: Observed, prompt_tokens: float, chunk_tokens: int) -> float:
    """lambda for prompts of this length, in requests/s."""
    chunk_s = min(prompt_tokens, chunk_tokens) / colocated.prefill_tokens_per_s
    chunks_per_s = _SHARE / ((1 - _SHARE) * colocated.quiet_gap_s + _SHARE * chunk_s)
    return chunks_per_s / math.ceil(prompt_tokens / chunk_tokens)


def advice_lines(
    disaggregated: Observed, colocated: Observed, slo: Slo, prompt_tokens: float, chunk_tokens: int
) -> list[str]:
    """For people. ``prompt_tokens``: the length the rates are told for (the run's median)."""
    here, there, n = colocated, disaggregated, prompt_tokens
    chunk_s = chunk_tokens / here.prefill_tokens_per_s
    itl_ms, ttft_s = slo.itl_s * 1e3, slo.ttft_s
    n_itl = stalling_prompt_tokens(here, slo, chunk_tokens)
    rate = stalling_rate(here, n, chunk_tokens)
    lines = [
        f"break-even against {here.name!r}, prompts of {n:,.0f} tokens:",
        f"  a chunk of {chunk_tokens} tokens: {chunk_tokens} / {here.prefill_tokens_per_s:,.0f} = "
        f"{chunk_s * 1e3:,.0f} ms; a running stream then waits {here.quiet_gap_s * 1e3:.1f} + "
        f"{chunk_s * 1e3:,.0f} ms (p99 measured while prompts were computed: "
        f"{here.disturbed_p99_s * 1e3:,.0f} ms; disaggregated: "
        f"{there.disturbed_p99_s * 1e3:,.0f} ms)",
    ]
    if math.isinf(n_itl):
        lines.append(
            f"  prompt length: none breaks a gap of {itl_ms:g} ms here, colocated holds it too"
        )
    else:
        lines.append(
            f"  prompt length: above ({itl_ms:g} - {here.quiet_gap_s * 1e3:.1f}) ms x "
            f"{here.prefill_tokens_per_s:,.0f}/s = {n_itl:,.0f} tokens a colocated stream's gap "
            f"breaks {itl_ms:g} ms"
        )
    lines += [
        f"  rate: above {rate:.3g} requests/s more than 1 in 100 colocated gaps holds a chunk",
        f"  price: TTFT of an idle service {_ms(n / there.prefill_tokens_per_s)} instead of "
        f"{_ms(n / here.prefill_tokens_per_s)}; second token {_ms(there.exposed_s)} later",
        f"  limits: one prefill worker computes prompts up to {ttft_s:g} s x "
        f"{there.prefill_tokens_per_s:,.0f}/s = {ttft_s * there.prefill_tokens_per_s:,.0f} tokens "
        f"in time, and is full at {there.prefill_tokens_per_s / n:.3g} requests/s",
        f"  measured goodput: {there.goodput:.3g} requests/s disaggregated, {here.goodput:.3g} "
        f"colocated: {_verdict(there.goodput, here.goodput)}",
    ]
    return lines


def _ms(value_s: float) -> str:
    return f"{value_s * 1e3:,.0f} ms"


def _verdict(disaggregated: float, colocated: float) -> str:
    if disaggregated == colocated:
        return "no difference at these SLOs"
    better = "disaggregated" if disaggregated > colocated else "colocated"
    low, high = sorted((disaggregated, colocated))
    return f"{better} is better" + (f" by {high / low:.2f} times" if low else "")
