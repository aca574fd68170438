"""Scenarios ``service``, ``cancel``, ``prefix``: on the fake engine they tell what they promise."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.result import ScenarioResult
from benchmarks.run import Scenario
from benchmarks.scenarios import (
    cancel,
    handover,
    interference,
    ledger,
    overload,
    prefix,
    routing,
    service,
)

FAKE = ["--", "--engine=fake", "--kv-memory=4"]


def run_scenario(scenario: Scenario, *arguments: str) -> ScenarioResult:
    parser = argparse.ArgumentParser()
    scenario.add_arguments(parser)
    result = scenario.run(parser.parse_args(list(arguments)))
    assert len({len(row) for row in result.rows}) == 1
    return ScenarioResult(result.rows, json.loads(json.dumps(result.data)))


def run_service(folder: Path, *arguments: str) -> tuple[ScenarioResult, list[dict[str, list]]]:  # type: ignore[type-arg]
    """The result, and the turns in its raw file."""
    raw = folder / "raw.json"
    small = ["--num-requests=6", "--isl=40", "--osl=5", "--warmup=1", f"--raw={raw}"]
    result = run_scenario(service, *small, *arguments)
    assert result.data["raw"] == str(raw)
    return result, json.loads(raw.read_text())


def test_service_counts_every_request_and_its_kv(tmp_path: Path) -> None:
    result, turns = run_service(tmp_path, "--concurrency=2", *FAKE)
    requests = turns[0]["requests"]
    assert [(r["error"], sum(n for _, n in r["arrivals"])) for r in requests] == [("", 5)] * 6
    assert {r["timing"]["kv_tokens"] for r in requests} == {40}
    rows = {row[0]: row[1] for row in result.rows}
    assert rows["requests done"] == "6"
    assert rows["errors"] == "none"
    assert {"TTFT p50 ms", "ITL p99 ms", "E2E p90 ms", "KV transfer p50 ms"} <= rows.keys()


def test_service_by_http_at_a_rate(tmp_path: Path) -> None:
    _, turns = run_service(tmp_path, "--face=http", "--rate=100", *FAKE, "--mode=colocated")
    requests = turns[0]["requests"]
    assert [(r["error"], sum(n for _, n in r["arrivals"])) for r in requests] == [("", 5)] * 6
    assert {r["timing"]["kv_bytes"] for r in requests} == {0}


def test_interference_in_three_setups(tmp_path: Path) -> None:
    raw = tmp_path / "raw.json"
    result = run_scenario(
        interference, "--streams=2", "--steady-osl=20", "--phase-s=0.4", "--every-s=0.2",
        "--long-isl=300", "--long-osl=2", "--settle-s=0.1", "--warmup=1", "--alone=1",
        f"--raw={raw}", *FAKE,
    )  # fmt: skip
    turns = json.loads(raw.read_text())
    assert len(result.rows[0]) == 4  # names and three setups
    for turn in turns:
        kinds = [request["kind"] for request in turn["requests"]]
        assert (kinds.count("long"), kinds.count("alone")) == (2, 1)
        assert kinds.count("steady") >= 2
        assert not [request for request in turn["requests"] if request["error"]]


def test_cancel_gives_everything_back_in_every_phase() -> None:
    result = run_scenario(
        cancel, "--streams=4", "--isl=600", "--osl=300", "--repeat=1", *FAKE
    )  # fmt: skip
    assert [row[0] for row in result.rows[1:]] == list(cancel.PHASES)
    assert all(len(each) == 1 for each in result.data["seconds"].values())  # type: ignore[attr-defined]
    assert result.data["blocks_held"]["decode"][0] >= 4 * 38  # type: ignore[index]


def test_prefix_tells_what_was_cached_and_shipped() -> None:
    result = run_scenario(prefix, "--rounds=1", "--prefix-tokens=320", "--osl=8", *FAKE)
    assert [row[0] for row in result.rows[1:]] == list(prefix.KINDS)
    assert result.data["cached"] == {"cold": [0], "seen": [320], "next turn": [336]}
    assert len(result.data["ttft_s"]["cold"]) == 1  # type: ignore[index]


def test_handover_has_a_row_for_each_transport_and_one_for_recomputing() -> None:
    result = run_scenario(
        handover, "--engine=fake", "--dtype=float32", "--isl=300", "--rounds=1", "--osl=4",
        "--transports", "tcp",
    )  # fmt: skip
    assert [row[0] for row in result.rows[1:]] == ["tcp", "recompute"]
    samples = result.data["samples"]
    assert isinstance(samples, dict)
    assert {name: len(found) for name, found in samples.items()} == {"tcp": 1}
    assert all(found[0]["kv_bytes"] > 0 for found in samples.values())


def test_ledger_has_every_request_from_when_its_client_says_it_began() -> None:
    result = run_scenario(ledger, "--requests=6", "--concurrency=2", *FAKE)
    parts = result.data["client's ttft_s, before_face_s, ledger's ttft_s"]
    assert isinstance(parts, dict)
    assert {name: len(found) for name, found in parts.items()} == {"gRPC": 6, "HTTP": 6}
    assert all(min(request) > 0 for found in parts.values() for request in found)


def test_routing_loses_no_block_and_times_each_part() -> None:
    small = ["--workers", "4", "--blocks=20000", "--prompt-tokens=512", "--decisions=20"]
    result = run_scenario(routing, *small)
    (row,) = result.data["rows"]  # type: ignore[misc]
    assert row["lost_blocks"] == 0
    assert 0 < row["blocks"] <= 20_000
    assert min(row[f"{part}_us"] for part in routing.PARTS) > 0


def test_overload_tells_what_became_of_every_request() -> None:
    result = run_scenario(
        overload, "--loads", "4", "--seconds=2", "--timeout=0.6", "--clients=4", "--",
        "--engine=fake", "--fake-prefill-us=400", "--fake-decode-ms=2",
    )  # fmt: skip
    (load,) = result.data["loads"]  # type: ignore[misc]
    assert set(load["counts"]) <= {"in time", "refused", "late"}
    assert load["counts"]["in time"] > 0
    assert load["counts"]["refused"] > 0
