"""A whole service from its client's side: latencies, rates, errors, and what KV moved.

    --concurrency N | --rate R     requests of one shape (the default: 8 at a time)
    --compare                      disaggregated against colocated on the same two cores

Drives a running service (``--url``, ``--grpc``) or starts one for each turn with the flags after
``--``. benchmarks/README.md tells how to read the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.in_turns import (
    add_load_options,
    add_output_options,
    add_target_options,
    run_in_turns,
    warm_up,
)
from benchmarks.result import ScenarioResult
from cluster.load.arrivals import draw_jobs, poisson_offsets
from cluster.load.faces import ServiceFace
from cluster.load.records import RequestRecord, load_measures
from cluster.load.sending import Sender, closed_loop, open_loop
from cluster.load.setups import Setup, compared_setups, running_setups
from cluster.load.turns import Measures

SUMMARY = "latencies and rates of a whole service, also disaggregated against colocated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("target")
    target.add_argument("--url", default="", help="HTTP address of a running OpenAI server")
    target.add_argument("--grpc", default="", help="gRPC face of a running pdserve, host:port")
    target.add_argument("--compare", action="store_true", help="three ways to use two cores")
    add_target_options(target)
    load = parser.add_argument_group("load")
    how = load.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    how.add_argument("--rate", type=float, help="requests a second, Poisson")
    load.add_argument("--num-requests", type=int, default=64)
    load.add_argument("--isl", type=int, default=128, help="prompt tokens")
    load.add_argument("--osl", type=int, default=64, help="output tokens")
    load.add_argument("--warmup", type=int, default=4, help="requests first that do not count")
    add_load_options(load)
    add_output_options(parser)


def run(args: argparse.Namespace) -> ScenarioResult:
    return run_in_turns("service", args, _setups(args), PlainLoad(args))


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
        await warm_up(face, args, jobs[: args.warmup])
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
