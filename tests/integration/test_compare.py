"""``pdserve compare`` on the fake engine: equal loads, a table, a plot, every request in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.compare.resources import COLOCATED, COLOCATED_ONE, DISAGGREGATED

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.0000000,200,40
2023-11-16 18:17:03.2000000,3000,4
2023-11-16 18:17:03.4000000,100,20
"""


def test_a_trace_through_every_setup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    status = main([
        "compare", "--engine=fake", "--kv-memory=4", f"--trace={trace}", "--length-scale=0.5",
        "--max-isl=600", "--warmup-requests=1", f"--results={tmp_path}", "--plot=svg",
    ])  # fmt: skip
    out = capsys.readouterr().out
    assert status == 0
    (raw,) = tmp_path.glob("compare-*.json")
    turns = json.loads(raw.read_text())
    assert [turn["setup"] for turn in turns] == [DISAGGREGATED, COLOCATED, COLOCATED_ONE]
    for turn in turns:
        counts = [sum(n for _, n in each["arrivals"]) for each in turn["requests"]]
        assert counts == [20, 2, 10]
        prompts = [each["timing"]["num_prompt_tokens"] for each in turn["requests"]]
        assert prompts == [100, 600, 50]
        moved = [each["timing"]["kv_bytes"] > 0 for each in turn["requests"]]
        assert moved == [turn["setup"] == DISAGGREGATED] * 3
    assert "1 of them cut" in out
    assert "goodput requests/s" in out
    assert f"{DISAGGREGATED!r} beside {COLOCATED!r}:" in out
    assert f"break-even against {COLOCATED!r}" in out
    (plot,) = tmp_path.glob("compare-*.svg")
    assert "<svg" in plot.read_text()


def test_wrong_options_are_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--engine=fake", f"--trace={tmp_path / 'none'}"]) == 2
    assert "trace:" in capsys.readouterr().err
    assert main(["compare", "--engine=fake", "--mode=colocated", "--plot=none"]) == 2
    assert "--mode" in capsys.readouterr().err
