"""One runner for all benchmarks: ``python -m benchmarks.run SCENARIO [options]``.

Prints a table for people and, as the last line, one JSON object for programs: scenario, command,
commit, machine, library versions and the scenario's data. A scenario is a module with
``SUMMARY``, ``add_arguments(parser)`` and ``run(args) -> ScenarioResult``.

Not covered: comparing two commits (run both, interleaved) and waiting for a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol, cast

from benchmarks.result import ScenarioResult
from cluster.load.table import table

SCENARIOS = (
    "engine",
    "service",
    "interference",
    "transport",
    "handover",
    "cancel",
    "soak",
    "clients",
    "prefix",
    "scaling",
    "weights",
    "routing",
    "overload",
    "ledger",
    "kernels",
    "ray_kv",
    "kv_coding",
)


class Scenario(Protocol):
    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> ScenarioResult: ...


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    commands = parser.add_subparsers(dest="scenario", required=True)
    modules: dict[str, Scenario] = {}
    for name in SCENARIOS:
        modules[name] = cast(Scenario, importlib.import_module(f"benchmarks.scenarios.{name}"))
        sub = commands.add_parser(name, help=modules[name].SUMMARY)
        modules[name].add_arguments(sub)
    args = parser.parse_args(arguments)
    result = modules[args.scenario].run(args)
    print(table(result.rows))
    record = {
        "scenario": args.scenario,
        "command": "python -m benchmarks.run " + shlex.join(arguments or sys.argv[1:]),
        **surroundings(),
        "data": result.data,
    }
    print(json.dumps(record))
    return 0


def surroundings() -> dict[str, object]:
    """What a reader needs to judge a figure: commit, machine, versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu_model()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "grpcio": version("grpcio"),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            found = {
                key.strip(): value.strip()
                for key, _, value in (line.partition(":") for line in lines)
            }
    except OSError:
        return platform.processor() or "unknown processor"
    simd = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile")
            if flag in found.get("flags", "").split()]  # fmt: skip
    family = f"family {found.get('cpu family', '?')} model {found.get('model', '?')}"
    return f"{found.get('model name', 'unknown')} ({family}; {' '.join(simd) or 'no AVX2'})"


if __name__ == "__main__":
    sys.exit(main())
