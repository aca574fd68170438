"""The picture of a comparison: all setups on the same axes, with the prompts that arrived above.

    prompts that arrive, by length
    every gap between two tokens, when it ended     | share of gaps longer than that
    every request's TTFT, when it was due           | share of requests that waited longer

matplotlib is asked for only here (extra ``compare``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.compare.measures import Slo
from cluster.load.records import RequestRecord
from pdserve.errors import ConfigError

_COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by the colour-blind too
_MARKERS = ("o", "s", "^")


@dataclass(frozen=True, slots=True)
class Series:
    """One setup's turn."""

    label: str
    records: Sequence[RequestRecord]

    def gaps_ms(self) -> list[tuple[float, float]]:
        """(end in s, length) of every gap."""
        return [(at_s, gap_s * 1e3) for record in self.records for at_s, gap_s in record.gaps]

    def ttfts_ms(self) -> list[tuple[float, float]]:
        """(due in s, TTFT) of every request that got a token."""
        return [(r.due_s, r.ttft_s * 1e3) for r in self.records if r.arrivals]


def require_matplotlib() -> None:
    """Raises ConfigError, before hours of measuring, if there can be no plot."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "plot: needs matplotlib (pip install 'pdserve[compare]'), or --plot none"
        ) from error


def draw(series: Sequence[Series], slo: Slo, title: str, path: Path) -> None:
    """Write ``path``; its suffix (.png, .svg) is the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    (prompts, words), (gaps, gap_shares), (ttfts, ttft_shares) = figure.subplots(
        3, 2, sharex="col", sharey="row",
        gridspec_kw={"height_ratios": (0.7, 2.2, 1.6), "width_ratios": (4, 1)},
    )  # fmt: skip
    _draw_prompts(prompts, series[0].records)
    words.set_axis_off()
    _draw_points(gaps, gap_shares, [each.gaps_ms() for each in series], slo.itl_s * 1e3, size=7)
    _draw_points(ttfts, ttft_shares, [each.ttfts_ms() for each in series], slo.ttft_s * 1e3, 22)
    for record in series[0].records:
        gaps.axvline(record.due_s, color="0.85", linewidth=0.6, zorder=0)
        ttfts.axvline(record.due_s, color="0.85", linewidth=0.6, zorder=0)
    gaps.set(ylabel="gap between tokens (ms)")
    ttfts.set(ylabel="TTFT (ms)", xlabel="time (s)")
    ttft_shares.set(xlabel="share that is longer", xscale="log", xlim=(1.2, 5e-3))
    ttft_shares.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    keys = [
        gaps.scatter([], [], s=30, color=colour, marker=marker, label=each.label)
        for each, colour, marker in zip(series, _COLOURS, _MARKERS, strict=False)
    ]
    figure.legend(handles=keys, loc="outside lower center", fontsize="small", title=(
        "grey: a prompt arrives; dashed: the SLOs"
    ), title_fontsize="small")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_prompts(axis: Any, records: Sequence[RequestRecord]) -> None:
    """They are the same in every setup."""
    known = [record for record in records if record.timing]
    lengths = [record.timing.num_prompt_tokens for record in known if record.timing]
    axis.vlines([record.due_s for record in known], 0, lengths, color="0.35", linewidth=1.4)
    axis.set(ylabel="prompt\n(tokens)", ylim=(0, None))


def _draw_points(
    over_time: Any,
    shares: Any,
    found: Sequence[Sequence[tuple[float, float]]],
    slo_ms: float,
    size: float,
) -> None:
    """The first setup on top of the others; on the right how much is longer than each length."""
    for index, (points, colour, marker) in enumerate(zip(found, _COLOURS, _MARKERS, strict=False)):
        over_time.scatter(
            [at_s for at_s, _ in points], [value_ms for _, value_ms in points],
            s=size, color=colour, marker=marker, linewidths=0, alpha=0.7, zorder=9 - index,
            rasterized=True,
        )  # fmt: skip
        ordered = sorted(value_ms for _, value_ms in points)
        longer = [1 - place / len(ordered) for place in range(len(ordered))]
        shares.plot(longer, ordered, color=colour, linewidth=1.6, zorder=9 - index)
    for axis in (over_time, shares):
        axis.axhline(slo_ms, color="0.2", linestyle="--", linewidth=0.9)
        axis.set(yscale="log")
        axis.yaxis.set_major_formatter(lambda value_ms, _: f"{value_ms:,g}")
        axis.grid(visible=True, axis="y", color="0.9", linewidth=0.6)
