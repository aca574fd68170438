"""What ``pdserve compare`` prints and draws at its end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from cluster.compare.break_even import Observed, advice_lines
from cluster.compare.config import CompareConfig
from cluster.compare.measures import Slo
from cluster.compare.plot import Series, draw
from cluster.compare.resources import DISAGGREGATED
from cluster.compare.verdict import verdict_lines
from cluster.compare.workload import Workload
from cluster.load.setups import Setup
from cluster.load.table import table
from cluster.load.turns import Turn, rows_of


def print_report(
    config: CompareConfig, turns: Sequence[Turn], sent: Workload, slo: Slo, chunk_tokens: int
) -> None:
    """Load, table, who wins at what and advice for each colocated setup; to standard output."""
    setups = _setups(turns)
    print("\n".join(load_lines(config, sent)))
    print()
    print(table(rows_of(turns, setups)))
    observed = [observe(setup.name, [t for t in turns if t.setup == setup]) for setup in setups]
    disaggregated = next((o for o in observed if o and o.name == DISAGGREGATED), None)
    for colocated in observed:
        if colocated is None or disaggregated is None or colocated is disaggregated:
            continue
        print()
        print("\n".join([*_verdict(turns, disaggregated.name, colocated.name), ""]))
        prompt_tokens = statistics.median(r.num_prompt_tokens for r in sent.requests)
        print("\n".join(advice_lines(disaggregated, colocated, slo, prompt_tokens, chunk_tokens)))


def _verdict(turns: Sequence[Turn], ours: str, theirs: str) -> list[str]:
    measured = {
        name: [turn.measures for turn in turns if turn.setup.name == name]
        for name in (ours, theirs)
    }
    return verdict_lines(measured[ours], measured[theirs], ours, theirs)


def load_lines(config: CompareConfig, sent: Workload) -> list[str]:
    """What was sent, and everything in which it is not what was recorded."""
    prompts = sorted(request.num_prompt_tokens for request in sent.requests)
    outputs = sorted(request.num_output_tokens for request in sent.requests)
    source = config.trace or f"Poisson arrivals, {config.rate:g} requests/s"
    lines = [
        f"load: {len(prompts)} requests in {sent.span_s:.1f} s ({source})",
        f"  prompts {prompts[0]:,} / {statistics.median(prompts):,.0f} / {prompts[-1]:,} tokens, "
        f"answers {outputs[0]:,} / {statistics.median(outputs):,.0f} / {outputs[-1]:,} "
        "(shortest / median / longest); random tokens, greedy, no end of sequence",
    ]
    if config.trace:
        lines.append(
            f"  from request {config.first_request:,}; gaps x {config.time_scale:g}, prompts x "
            f"{config.length_scale:g}, answers x {config.answer_scale or config.length_scale:g}, "
            "requests of one time "
            + (f"spread over {config.spread_s:g} s" if config.spread_s else "sent at once")
        )
    if sent.num_cut:
        lines.append(f"  {sent.num_cut} of them cut to the limits of lengths")
    lines.append(f"SLOs: TTFT {config.slo_ttft_ms:g} ms, mean gap {config.slo_itl_ms:g} ms")
    return lines


def observe(name: str, turns: Sequence[Turn]) -> Observed | None:
    """Medians over rounds; None if nothing succeeded or no gap was quiet."""
    ledgers = [r.timing for turn in turns for r in turn.records if r.timing and not r.error]
    compute_s = sum(timing.prefill_compute_s for timing in ledgers)
    quiet_ms = [t.measures[key] for t in turns if (key := "ITL quiet p50 ms") in t.measures]
    if not compute_s or not quiet_ms:
        return None
    computed = sum(timing.num_prompt_tokens - timing.prefill_cached_tokens for timing in ledgers)
    disturbed_ms = [t.measures.get("ITL disturbed p99 ms", 0.0) for t in turns]
    return Observed(
        name,
        prefill_tokens_per_s=computed / compute_s,
        quiet_gap_s=statistics.median(quiet_ms) / 1e3,
        disturbed_p99_s=statistics.median(disturbed_ms) / 1e3,
        exposed_s=statistics.median(timing.kv_exposed_s for timing in ledgers),
        goodput=statistics.median(turn.measures["goodput requests/s"] for turn in turns),
    )


def write_plot(
    path: Path, config: CompareConfig, turns: Sequence[Turn], sent: Workload, slo: Slo
) -> None:
    """The first turn of each setup."""
    series = [
        Series(_label(turn), turn.records)
        for setup in _setups(turns)
        for turn in turns
        if turn.setup == setup and turn.round == 0
    ]
    draw(series, slo, _plot_title(config, sent), path)


def _plot_title(config: CompareConfig, sent: Workload) -> str:
    load = f"{len(sent.requests)} requests in {sent.span_s:.0f} s"
    if not config.trace:
        return f"{load}: {config.isl} tokens in, {config.osl} out, {config.rate:g} requests/s"
    answers = config.answer_scale or config.length_scale
    return (
        f"{Path(config.trace).stem} from request {config.first_request:,}: {load}; "
        f"gaps x {config.time_scale:g}, prompts x {config.length_scale:g}, answers x {answers:g}"
    )


def _label(turn: Turn) -> str:
    found = turn.measures
    if not found:
        return f"{turn.setup.name}: nothing succeeded"
    gaps = f"ITL p50 {found['ITL p50 ms']:,.0f}, p99 {found['ITL p99 ms']:,.0f} ms; " if (
        "ITL p99 ms" in found
    ) else ""  # fmt: skip
    return (
        f"{turn.setup.name}: {gaps}TTFT p50 {found['TTFT p50 ms']:,.0f}, p99 "
        f"{found['TTFT p99 ms']:,.0f} ms; both SLOs met by {found['SLOs met %']:.0f} %"
    )


def _setups(turns: Sequence[Turn]) -> list[Setup]:
    """In the order of the first round."""
    return list(dict.fromkeys(turn.setup for turn in turns))
