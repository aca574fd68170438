"""A whole service from its client's side: latencies, rates, errors, and what KV moved.

    --concurrency N | --rate R     requests of one shape (the default: 8 at a time)
    --compare                      disaggregated against colocated on the same two cores

Drives a running service (``--url``, ``--grpc``) or starts one for each turn with the flags after
``--``. benchmarks/README.md tells how to read the result.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.result import ScenarioResult
from benchmarks.timeline import print_timelines
from cluster.load.arrivals import Job, draw_jobs, poisson_offsets
from cluster.load.faces import ServiceFace
from cluster.load.records import RequestRecord, load_measures
from cluster.load.sending import Sender, closed_loop, open_loop
from cluster.load.setups import Setup, compared_setups, running_setups
from cluster.load.turns import Measures, rows_of, summaries, take_turns, write_raw

SUMMARY = "latencies and rates of a whole service, also disaggregated against colocated"
_RAW_FOLDER = Path("build") / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("target")
    target.add_argument("--url", default="", help="HTTP address of a running OpenAI server")
    target.add_argument("--grpc", default="", help="gRPC face of a running pdserve, host:port")
    target.add_argument("--face", default="grpc", choices=("grpc", "http"),
                        help="how to ask a service that is started here")  # fmt: skip
    target.add_argument("--compare", action="store_true", help="three ways to use two cores")
    target.add_argument("serve_flags", nargs="*", metavar="-- SERVE_FLAG",
                        help="options of pdserve serve for what is started")  # fmt: skip
    load = parser.add_argument_group("load")
    how = load.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    how.add_argument("--rate", type=float, help="requests a second, Poisson")
    load.add_argument("--num-requests", type=int, default=64)
    load.add_argument("--isl", type=int, default=128, help="prompt tokens")
    load.add_argument("--osl", type=int, default=64, help="output tokens")
    load.add_argument("--vocab-size", type=int, help="ids are below it; default: the service's")
    load.add_argument("--warmup", type=int, default=4, help="requests first that do not count")
    load.add_argument("--seed", default="0")
    load.add_argument("--timeout-s", type=float, default=600.0, help="longest request")
    output = parser.add_argument_group("output")
    output.add_argument("--rounds", type=int, default=1)
    output.add_argument("--timeline", type=float, metavar="S", help="print slices of S seconds")
    output.add_argument("--raw", type=Path, help=f"every request as JSON; default in {_RAW_FOLDER}")


def run(args: argparse.Namespace) -> ScenarioResult:
    setups = _setups(args)
    load = PlainLoad(args)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        turns = runner.run(take_turns(setups, args.rounds, load.run, load.measure))
    if args.timeline:
        print_timelines(turns, args.timeline)
    raw = args.raw or _RAW_FOLDER / f"service-{time.strftime('%Y%m%dT%H%M%S')}.json"
    write_raw(raw, turns)
    print(f"every request: {raw}")
    data = {"load": load.describe(), "raw": str(raw), "turns": summaries(turns)}
    return ScenarioResult(rows=rows_of(turns, setups), data=data)


def _setups(args: argparse.Namespace) -> list[Setup]:
    flags: Sequence[str] = args.serve_flags
    running = running_setups(args.url, args.grpc)
    if running and (args.compare or flags):
        raise SystemExit("--url and --grpc name a running service: neither --compare nor flags")
    if args.compare:
        return compared_setups(flags, args.face)
    return running or [Setup(" ".join(flags) or "pdserve serve", tuple(flags), args.face)]


@dataclass(frozen=True, slots=True)
class PlainLoad:
    """Requests of one shape, at a concurrency or at a rate."""

    args: argparse.Namespace

    async def run(self, face: ServiceFace, number: int) -> list[RequestRecord]:
        args = self.args
        vocab_size = args.vocab_size or await face.vocab_size()
        seed = f"{args.seed} {number}"
        jobs = draw_jobs(
            args.warmup + args.num_requests, num_prompt_tokens=args.isl, max_tokens=args.osl,
            vocab_size=vocab_size, seed=seed,
        )  # fmt: skip
        await _warm_up(face, args, jobs[: args.warmup])
        jobs = jobs[args.warmup :]
        sender = Sender.start(face, args.timeout_s)
        if args.rate:
            return await open_loop(sender, jobs, poisson_offsets(args.rate, len(jobs), seed))
        return await closed_loop(sender, jobs, args.concurrency)

    def measure(self, records: Sequence[RequestRecord]) -> Measures:
        return load_measures(records)

    def describe(self) -> dict[str, object]:
        args = self.args
        how = {"rate": args.rate} if args.rate else {"concurrency": args.concurrency}
        names = ("num_requests", "isl", "osl", "warmup", "seed")
        return {**how, **{name: getattr(args, name) for name in names}}


async def _warm_up(face: ServiceFace, args: argparse.Namespace, jobs: Sequence[Job]) -> None:
    await closed_loop(Sender.start(face, args.timeout_s), jobs, max(len(jobs), 1))
