"""How long after its clients left everything of a request is back: blocks, legs, tickets.

A service in this process (fake engine unless told otherwise) runs N streams of its gRPC clients;
all are cancelled at once, in one of these phases:

    arriving      the router has all of them; most wait
    prefill       a prompt chunk has been computed
    first token   one client has its first token
    decode        every client has several tokens

Counted from the first client's cancel until every worker's blocks are free and neither router nor
workers know a request, read every half millisecond. A running step is not interrupted: its rest is
part of the time. Not covered: sessions over gRPC, lost workers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import uvloop

from benchmarks.result import ScenarioResult
from cluster.host import inspect_host
from cluster.inproc import InprocService
from cluster.load.arrivals import Job, draw_jobs
from cluster.load.table import number
from cluster.plan import read_plan, service_parser
from pdserve.clock import MonotonicClock
from pdserve.errors import RequestCancelled
from router.client import AsyncClient, AsyncTextStream

SUMMARY = "time until a cancelled request's blocks and legs are back"
_FREE_PORTS = ("--http-port=0", "--grpc-port=0", "--worker-port=0")
_LOOK_EVERY_S = 0.0005
_TIMEOUT_S = 120.0
_DECODE_TOKENS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="fake", choices=("fake", "model"))
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--isl", type=int, default=512, help="prompt tokens")
    parser.add_argument("--osl", type=int, default=512, help="output tokens, had they gone on")
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=list(PHASES))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", default="0")
    parser.add_argument("serve_flags", nargs="*", metavar="-- SERVE_FLAG",
                        help="options of pdserve serve")  # fmt: skip


def run(args: argparse.Namespace) -> ScenarioResult:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        samples = runner.run(_measure(args))
    rows: list[tuple[str, ...]] = [
        ("phase", "ms until all is back", "min", "max", "blocks held", "legs")
    ]
    for phase, cancels in samples.items():
        times_ms = [cancel.seconds * 1e3 for cancel in cancels]
        rows.append((
            phase, *(number(each(times_ms)) for each in (statistics.median, min, max)),
            number(statistics.median(cancel.num_blocks for cancel in cancels)),
            number(statistics.median(cancel.num_legs for cancel in cancels)),
        ))  # fmt: skip
    data = {
        "engine": args.engine, "streams": args.streams, "isl": args.isl, "osl": args.osl,
        "flags": args.serve_flags, "resolution_s": _LOOK_EVERY_S,
        "seconds": {phase: [c.seconds for c in cancels] for phase, cancels in samples.items()},
        "blocks_held": {p: [c.num_blocks for c in cancels] for p, cancels in samples.items()},
        "legs": {p: [c.num_legs for c in cancels] for p, cancels in samples.items()},
    }  # fmt: skip
    return ScenarioResult(rows=rows, data=data)


@dataclass(frozen=True, slots=True)
class Cancel:
    """``num_blocks`` and ``num_legs``: what was held when the clients left."""

    seconds: float
    num_blocks: int
    num_legs: int


class Watched:
    """The service, and what is held in it just now."""

    def __init__(self, service: InprocService) -> None:
        self._service = service

    @property
    def num_requests(self) -> int:
        return self._service.router.router.status().num_in_flight

    @property
    def num_legs(self) -> int:
        return sum(entry.num_legs for entry in self._service.router.router.status().workers)

    @property
    def num_steps(self) -> int:
        return sum(app.worker.status().step for app in self._service.workers.values())

    @property
    def num_blocks(self) -> int:
        pools = [app.pool for app in self._service.workers.values()]
        return sum(pool.num_blocks - pool.num_free for pool in pools)

    def is_empty(self) -> bool:
        status = self._service.router.router.status()
        if status.num_in_flight or status.num_tickets or self.num_legs or self.num_blocks:
            return False
        own = [app.worker.status() for app in self._service.workers.values()]
        return not any(s.num_queued or s.num_running or s.num_exported for s in own)


@dataclass(slots=True)
class Clients:
    """Streams under way. ``num_tokens``: what each client has so far."""

    streams: list[AsyncTextStream]
    num_tokens: list[int] = field(default_factory=list)

    async def read(self, index: int) -> None:
        with contextlib.suppress(RequestCancelled):  # it is what this scenario does to them
            async for delta in self.streams[index]:
                self.num_tokens[index] += len(delta.token_ids)


Reached = Callable[[Watched, Clients, int], bool]  # the last: steps before the clients came

PHASES: dict[str, Reached] = {
    "arriving": lambda service, clients, steps: service.num_requests == len(clients.streams),
    "prefill": lambda service, clients, steps: service.num_steps > steps,
    "first token": lambda service, clients, steps: any(clients.num_tokens),
    "decode": lambda service, clients, steps: min(clients.num_tokens) >= _DECODE_TOKENS,
}


async def _measure(args: argparse.Namespace) -> dict[str, list[Cancel]]:
    samples: dict[str, list[Cancel]] = {phase: [] for phase in args.phases}
    async with _service(args) as service, AsyncClient(service.address.grpc_target) as client:
        vocab_size = (await client.list_models())[0].vocab_size
        # The first round is not counted: it opens the connection and touches the memory.
        for repetition in range(args.repeat + 1):
            for phase in args.phases:
                jobs = draw_jobs(
                    args.streams, num_prompt_tokens=args.isl, max_tokens=args.osl,
                    vocab_size=vocab_size, seed=f"{args.seed} {phase} {repetition}",
                )  # fmt: skip
                cancel = await _cancel_all(Watched(service), client, jobs, PHASES[phase])
                if repetition:
                    samples[phase].append(cancel)
    return samples


@contextlib.asynccontextmanager
async def _service(args: argparse.Namespace) -> AsyncIterator[InprocService]:
    parser = service_parser("benchmarks.run cancel", "A service in this process.")
    flags = [*_FREE_PORTS, f"--engine={args.engine}", *args.serve_flags]
    plan = read_plan(parser.parse(flags))
    spec = plan.cluster_spec(inspect_host(with_cuda=plan.wants_cuda()))
    service = InprocService(plan, spec, clock=MonotonicClock(), say=_say)
    try:
        await service.start()
        yield service
    finally:
        await service.kill()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _cancel_all(
    service: Watched, client: AsyncClient, jobs: Sequence[Job], reached: Reached
) -> Cancel:
    num_steps = service.num_steps
    streams = [
        client.generate(
            prompt_ids=job.prompt_ids, max_tokens=job.max_tokens, ignore_eos=True, temperature=0.0
        )
        for job in jobs
    ]
    clients = Clients(streams, [0] * len(streams))
    async with asyncio.TaskGroup() as reading:
        for index in range(len(streams)):
            reading.create_task(clients.read(index))
        await _until(lambda: reached(service, clients, num_steps))
        num_blocks, num_legs = service.num_blocks, service.num_legs
        started_s = time.perf_counter()
        for stream in streams:
            stream.cancel()
        await _until(service.is_empty)
        seconds = time.perf_counter() - started_s
    return Cancel(seconds, num_blocks, num_legs)


async def _until(condition: Callable[[], bool]) -> None:
    """Raises TimeoutError. Looks again and again: it depends on several parts, no one event."""
    async with asyncio.timeout(_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY_S)
