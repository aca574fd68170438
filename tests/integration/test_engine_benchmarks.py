"""Scenarios ``scaling`` and ``weights`` on a tiny model: whole tables, losses that make sense."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.result import ScenarioResult
from benchmarks.run import Scenario
from benchmarks.scenarios import scaling, weights
from pdserve.step_cost import DecodeCost, PrefillCost
from support.tiny_llama import write_tiny_llama


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PDSERVE_CACHE", str(tmp_path / "cache"))
    return str(write_tiny_llama(tmp_path / "tiny"))


def run_scenario(scenario: Scenario, *arguments: str) -> ScenarioResult:
    parser = argparse.ArgumentParser()
    scenario.add_arguments(parser)
    result = scenario.run(parser.parse_args(list(arguments)))
    assert len({len(row) for row in result.rows}) == 1
    return ScenarioResult(result.rows, json.loads(json.dumps(result.data)))


def test_scaling_prints_cases_fits_and_what_does_not_fit(model: str) -> None:
    result = run_scenario(
        scaling, f"--model={model}", "--prefill", "40", "300", "700", "--batch", "1", "4", "4000",
        "--context", "20", "300", "--repeat=1", "--steps=1", "--kv-memory-mib=64",
    )  # fmt: skip
    cells = {row[0]: row[1:] for row in result.rows}
    assert cells["decode b=4000 at 300"][0] == "does not fit"
    assert {"prefill 700", "decode b=4 at 300", "prefill fit", "decode fit"} <= cells.keys()
    cost = result.data["cost"]
    assert isinstance(cost, dict)
    assert PrefillCost(**cost["prefill"]).seconds(0, 700) > 0
    assert DecodeCost(**cost["decode"]).seconds(4, 1200) > 0


def test_weights_tells_what_int8_costs(model: str) -> None:
    """Random weights know nothing of the text: both read it as badly as each other."""
    result = run_scenario(
        weights, f"--model={model}", "--dtype=float32", "--windows=2", "--window-tokens=200",
        "--batch", "1", "3", "--repeat=1", "--steps=2", "--threads=1",
    )  # fmt: skip
    data = result.data
    assert data["num_tokens"] == 2 * 199
    perplexity = data["perplexity"]
    assert isinstance(perplexity, dict)
    assert perplexity["full"] != perplexity["int8"]
    assert perplexity["int8"] == pytest.approx(perplexity["full"], rel=0.2)
    assert 0.7 < data["equal_share"] < 1  # type: ignore[operator]
    assert {row[0] for row in result.rows} >= {"prefill 200 tokens/s", "decode b=3 at 128 tokens/s"}
