"""What is done in time when more is asked for than can be done: goodput against offered load.

First the capacity: as many requests as clients that wait for each answer get done. Then requests
come by a Poisson process at multiples of it, each with a deadline, whatever becomes of the others:

    in time    ended well before its deadline
    refused    told at once that it cannot be (Overloaded, with a time to come back)
    late       given up at its deadline

By default on the fake engine, whose steps take a given time, so that what is seen is the router's
doing. Not covered: clients that come back after a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.result import ScenarioResult
from cluster.load.started_service import started_service
from cluster.load.table import number
from pdserve.errors import DeadlineExceeded, Overloaded, PdserveError
from router.client import AsyncClient

SUMMARY = "goodput under deadlines when more is asked for than can be done"
FAKE = ["--engine=fake", "--fake-prefill-us=400", "--fake-decode-ms=10"]


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str  # "in time" | "refused" | "late" | the code of another error
    took_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--isl", type=int, default=128, help="prompt tokens")
    parser.add_argument("--osl", type=int, default=16, help="output tokens")
    parser.add_argument("--timeout", type=float, default=2.0, help="deadline of a request, s")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each load")
    parser.add_argument("--clients", type=int, default=16, help="while the capacity is measured")
    parser.add_argument("--seed", default="0")
    parser.add_argument("flags", nargs="*", default=FAKE, help="of pdserve serve, after --")


def run(args: argparse.Namespace) -> ScenarioResult:
    capacity, found = asyncio.run(_measure(args))
    rows: list[tuple[str, ...]] = [(
        "offered", "req/s", "in time /s", "of best %", "refused /s", "late /s", "other /s",
        "refusal ms p50",
    )]  # fmt: skip
    data: list[dict[str, object]] = []
    goodputs = {load: _rate(outcomes, "in time", args) for load, outcomes in found.items()}
    best = max(goodputs.values())
    for load, outcomes in found.items():
        refused = _rate(outcomes, "refused", args)
        late = _rate(outcomes, "late", args)
        other = len(outcomes) / args.seconds - goodputs[load] - refused - late
        waits = [outcome.took_s for outcome in outcomes if outcome.kind == "refused"]
        rows.append((
            f"{load:g} x", number(len(outcomes) / args.seconds), number(goodputs[load]),
            number(100 * goodputs[load] / best), number(refused), number(late), number(other),
            number(statistics.median(waits) * 1e3) if waits else "-",
        ))  # fmt: skip
        kinds = sorted({outcome.kind for outcome in outcomes})
        counts = {kind: sum(each.kind == kind for each in outcomes) for kind in kinds}
        data.append({"load": load, "goodput_per_s": goodputs[load], "counts": counts})
    return ScenarioResult(
        rows=rows, data={"capacity_per_s": capacity, "timeout_s": args.timeout, "loads": data}
    )


def _rate(outcomes: list[Outcome], kind: str, args: argparse.Namespace) -> float:
    seconds: float = args.seconds
    return sum(outcome.kind == kind for outcome in outcomes) / seconds


async def _measure(args: argparse.Namespace) -> tuple[float, dict[float, list[Outcome]]]:
    prompts = _prompts(args)
    async with started_service(args.flags) as facts, AsyncClient(facts.grpc_target) as client:
        capacity = await _capacity(client, prompts, args)
        found = {}
        for load in args.loads:
            found[load] = await _offer(client, prompts, load * capacity, args)
    return capacity, found


def _prompts(args: argparse.Namespace) -> Iterator[list[int]]:
    draw = random.Random(f"prompts {args.seed}")
    while True:
        yield [draw.randrange(256) for _ in range(args.isl)]


async def _capacity(
    client: AsyncClient, prompts: Iterator[list[int]], args: argparse.Namespace
) -> float:
    until_s = time.perf_counter() + args.seconds / 2

    async def one_client() -> int:
        num_done = 0
        while time.perf_counter() < until_s:
            num_done += (await _ask(client, next(prompts), args, timeout_s=60.0)).kind == "in time"
        return num_done

    counts = await asyncio.gather(*(one_client() for _ in range(args.clients)))
    return 2 * sum(counts) / float(args.seconds)


async def _offer(
    client: AsyncClient, prompts: Iterator[list[int]], rate: float, args: argparse.Namespace
) -> list[Outcome]:
    draw = random.Random(f"{args.seed} {rate}")
    started_s, asked = time.perf_counter(), []
    due_s = draw.expovariate(rate)
    while due_s < args.seconds:
        await asyncio.sleep(max(0.0, started_s + due_s - time.perf_counter()))
        asking = _ask(client, next(prompts), args, timeout_s=args.timeout)
        asked.append(asyncio.create_task(asking))
        due_s += draw.expovariate(rate)
    return list(await asyncio.gather(*asked))


async def _ask(
    client: AsyncClient, prompt_ids: list[int], args: argparse.Namespace, *, timeout_s: float
) -> Outcome:
    started_s = time.perf_counter()
    try:
        async for _ in client.generate(
            prompt_ids=prompt_ids, max_tokens=args.osl, temperature=0.0, ignore_eos=True,
            timeout_s=timeout_s,
        ):  # fmt: skip
            pass
        kind = "in time"
    except Overloaded:
        kind = "refused"
    except DeadlineExceeded:
        kind = "late"
    except PdserveError as error:
        kind = error.code
    return Outcome(kind, time.perf_counter() - started_s)
