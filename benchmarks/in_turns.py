"""What the scenarios that ask whole services in turns have in common: options, warm-up, the run.

They differ in their setups and in their load. Not covered: what is printed of a load's own.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import uvloop

from benchmarks.result import ScenarioResult
from benchmarks.timeline import print_timelines
from cluster.load.arrivals import Job
from cluster.load.faces import ServiceFace
from cluster.load.records import RequestRecord
from cluster.load.sending import Sender, closed_loop
from cluster.load.setups import Setup
from cluster.load.turns import Measures, rows_of, summaries, take_turns, write_raw

_RAW_FOLDER = Path("build") / "benchmarks"


class Load(Protocol):
    """What every setup is sent in its turn."""

    async def run(self, face: ServiceFace, number: int) -> list[RequestRecord]: ...

    def measure(self, records: Sequence[RequestRecord]) -> Measures: ...

    def describe(self) -> dict[str, object]: ...


def add_target_options(target: argparse._ArgumentGroup) -> None:
    target.add_argument("--face", default="grpc", choices=("grpc", "http"),
                        help="how to ask a service that is started here")  # fmt: skip
    target.add_argument("serve_flags", nargs="*", metavar="-- SERVE_FLAG",
                        help="options of pdserve serve for what is started")  # fmt: skip


def add_load_options(load: argparse._ArgumentGroup) -> None:
    load.add_argument("--vocab-size", type=int, help="ids are below it; default: the service's")
    load.add_argument("--seed", default="0")
    load.add_argument("--timeout-s", type=float, default=600.0, help="longest request")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--rounds", type=int, default=1)
    output.add_argument("--timeline", type=float, metavar="S", help="print slices of S seconds")
    output.add_argument("--raw", type=Path, help=f"every request as JSON; default in {_RAW_FOLDER}")


async def warm_up(face: ServiceFace, args: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """All at a time; none of them counts."""
    await closed_loop(Sender.start(face, args.timeout_s), jobs, max(len(jobs), 1))


def run_in_turns(
    name: str, args: argparse.Namespace, setups: Sequence[Setup], load: Load, gaps_of: str = ""
) -> ScenarioResult:
    """``name`` of the scenario; ``gaps_of``: the kind of request that timelines show."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        turns = runner.run(take_turns(setups, args.rounds, load.run, load.measure))
    if args.timeline:
        print_timelines(turns, args.timeline, gaps_of)
    raw = args.raw or _RAW_FOLDER / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    write_raw(raw, turns)
    print(f"every request: {raw}")
    data = {"load": load.describe(), "raw": str(raw), "turns": summaries(turns)}
    return ScenarioResult(rows=rows_of(turns, setups), data=data)
