"""What a batch comes to: counts, tokens a second, percentiles of TTFT and ITL. Pure.

TTFT and ITL are the service's own measurements (the ledger of each answer). TTFT runs from the
arrival at the router, so under a batch it is mostly waiting for a turn. ITL is the mean of one
answer's gaps between tokens; percentiles are taken over answers.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.batch.sending import LineEnd
from cluster.load.percentiles import percentile

PERCENTS = (50, 90, 99, 100)


@dataclass(slots=True)
class Tally:
    """Grows by ``add`` as lines end. ``num_done_before``: lines that earlier runs had finished."""

    num_lines: int
    num_done_before: int
    num_answered: int = 0
    num_tries: int = 0
    num_sent: int = 0
    num_may_pass: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    ttfts_s: array[float] = field(default_factory=lambda: array("d"))
    itls_s: array[float] = field(default_factory=lambda: array("d"))

    def add(self, end: LineEnd) -> None:
        self.num_tries += end.num_tries
        self.num_sent += end.num_tries > 0
        if not end.result.is_answer:
            self.failures[end.result.failure] += 1
            self.num_may_pass += end.result.may_pass
            return
        self.num_answered += 1
        self.num_prompt_tokens += end.measured.num_prompt_tokens
        self.num_generated_tokens += end.measured.num_generated_tokens
        ledger = end.measured.ledger
        if ledger is None:
            return
        ttft_s, total_s = float(ledger["ttft_s"]), float(ledger["total_s"])
        self.ttfts_s.append(ttft_s)
        gaps = int(ledger["num_generated_tokens"]) - 1
        if gaps > 0:
            self.itls_s.append((total_s - ttft_s) / gaps)

    @property
    def num_failed(self) -> int:
        return self.failures.total()

    @property
    def num_ended(self) -> int:
        """Lines that have a result, whenever they got it."""
        return self.num_done_before + self.num_answered + self.num_failed


def summary_facts(tally: Tally, took_s: float) -> dict[str, object]:
    """For programs. Rates are of this run; times in seconds; percentiles by "p50" ... "max"."""
    return {
        "num_lines": tally.num_lines,
        "num_done_before": tally.num_done_before,
        "num_answered": tally.num_answered,
        "num_failed": tally.num_failed,
        "failures": dict(tally.failures),
        "num_retries": tally.num_tries - tally.num_sent,
        "num_left": tally.num_lines - tally.num_ended,
        "took_s": took_s,
        "requests_per_s": tally.num_answered / took_s if took_s else 0.0,
        "num_prompt_tokens": tally.num_prompt_tokens,
        "num_generated_tokens": tally.num_generated_tokens,
        "prompt_tokens_per_s": tally.num_prompt_tokens / took_s if took_s else 0.0,
        "generated_tokens_per_s": tally.num_generated_tokens / took_s if took_s else 0.0,
        "ttft_s": _percentiles(tally.ttfts_s),
        "itl_s": _percentiles(tally.itls_s),
    }


def summary_lines(tally: Tally, took_s: float) -> list[str]:
    """For people."""
    lines = [f"{tally.num_ended:,} of {tally.num_lines:,} lines have a result"]
    if tally.num_done_before:
        lines[0] += f", {tally.num_done_before:,} of them from before"
    failed = ", ".join(f"{code} {count:,}" for code, count in tally.failures.most_common())
    lines.append(
        f"this run: {tally.num_answered:,} answered, {tally.num_failed:,} failed"
        + (f" ({failed})" if failed else "")
        + f", {tally.num_tries - tally.num_sent:,} tries again, {took_s:.1f} s"
    )
    if tally.num_answered and took_s:
        lines.append(
            f"{tally.num_answered / took_s:,.2f} requests/s; "
            f"{tally.num_prompt_tokens:,} prompt tokens, {tally.num_prompt_tokens / took_s:,.0f}/s;"
            f" {tally.num_generated_tokens:,} generated, "
            f"{tally.num_generated_tokens / took_s:,.0f}/s"
        )
    for name, values_s in ("TTFT", tally.ttfts_s), ("ITL", tally.itls_s):
        if values_s:
            parts = [f"{key} {value_s * 1e3:,.1f}" for key, value_s in
                     _percentiles(values_s).items()]  # fmt: skip
            lines.append(f"{name} ms: {', '.join(parts)}")
    if tally.num_may_pass:
        lines.append(
            f"{tally.num_may_pass:,} failed through the service: the same command tries them again"
        )
    return lines


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """By "p50" ... "max"; empty without values."""
    return {
        "max" if percent == 100 else f"p{percent}": percentile(values, percent)
        for percent in (PERCENTS if values else ())
    }
