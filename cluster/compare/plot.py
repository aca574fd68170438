"""The picture of a comparison: every gap between tokens over time, arrivals of prompts marked.

A panel for each setup under the same axes. matplotlib is asked for only here (extra ``compare``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.load.records import RequestRecord
from pdserve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    records: Sequence[RequestRecord]


def require_matplotlib() -> None:
    """Raises ConfigError, before hours of measuring, if there can be no plot."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "plot: needs matplotlib (pip install 'pdserve[compare]'), or --plot none"
        ) from error


def draw(panels: Sequence[Panel], itl_slo_ms: float, title: str, path: Path) -> None:
    """Write ``path``; its suffix (.png, .svg) is the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6 * len(panels) + 1), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        gaps = [gap for record in panel.records for gap in record.gaps]
        longest = max((_num_prompt(record) for record in panel.records), default=0) or 1
        for record in panel.records:
            share = _num_prompt(record) / longest
            axis.axvline(record.due_s, color="tab:orange", linewidth=0.4 + 1.6 * share, alpha=0.35)
        axis.scatter(
            [at_s for at_s, _ in gaps], [gap_s * 1e3 for _, gap_s in gaps],
            s=3, color="tab:blue", linewidths=0, rasterized=True,
        )  # fmt: skip
        axis.axhline(itl_slo_ms, color="tab:red", linestyle="--", linewidth=0.8)
        axis.set(yscale="log", ylabel="gap (ms)", title=panel.title)
    axes[-1].set_xlabel("time (s); orange: a prompt arrives, wider: longer; red: the SLO of a gap")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _num_prompt(record: RequestRecord) -> int:
    return record.timing.num_prompt_tokens if record.timing else 0
