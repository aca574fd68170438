"""The runner prints a table for people and one last line of JSON for programs."""

import argparse
import json
from types import SimpleNamespace

import pytest

from benchmarks import run
from benchmarks.result import ScenarioResult
from benchmarks.scenarios import cancel, service
from cluster.load.table import number, spread_cell, table


def test_last_line_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scenario(args: argparse.Namespace) -> ScenarioResult:
        return ScenarioResult([("case", "rate"), ("a", "1")], {"a": [1.0, args.factor]})

    module = SimpleNamespace(
        SUMMARY="made up",
        add_arguments=lambda parser: parser.add_argument("--factor", type=float),
        run=scenario,
    )
    monkeypatch.setattr(run, "SCENARIOS", ("engine",))
    monkeypatch.setattr(run.importlib, "import_module", lambda name: module)
    assert run.main(["engine", "--factor", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["case  rate", "----  ----", "a     1"]
    record = json.loads(lines[-1])
    assert record["scenario"] == "engine"
    assert record["command"] == "python -m benchmarks.run engine --factor 2"
    assert record["data"] == {"a": [1.0, 2.0]}
    assert {"commit", "machine", "python", "torch", "grpcio"} <= record.keys()


def test_columns_are_aligned() -> None:
    assert table([("a", "long head"), ("longer", "b")]).splitlines() == [
        "a       long head",
        "------  ---------",
        "longer  b",
    ]


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([], "-"),
        ([3.14159], "3.14"),
        ([3.0, 1.0, 200.4], "3.00 (1.00-200)"),
        ([2, 4], "3 (2-4)"),
        ([1234.5], "1,234"),
    ],
)
def test_cells_show_the_spread(values: list[float], cell: str) -> None:
    assert spread_cell(values) == cell


def test_numbers_have_about_three_digits() -> None:
    assert [number(each) for each in (0.1234, 12.34, 123.4, 7)] == ["0.12", "12.3", "123", "7"]


@pytest.mark.parametrize("scenario", [service, cancel])
def test_flags_after_two_dashes_are_the_services(scenario: run.Scenario) -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()  # as the runner has them
    scenario.add_arguments(commands.add_parser("it"))
    args = parser.parse_args(["it", "--isl", "7", "--", "--dtype", "bfloat16", "--threads=2"])
    assert args.isl == 7
    assert args.serve_flags == ["--dtype", "bfloat16", "--threads=2"]


def test_a_running_service_takes_no_flags() -> None:
    parser = argparse.ArgumentParser()
    service.add_arguments(parser)
    args = parser.parse_args(["--grpc", "127.0.0.1:1", "--compare"])
    with pytest.raises(SystemExit, match="running service"):
        service.run(args)
