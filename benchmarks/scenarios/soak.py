"""Many long streams at once, undisturbed and with a worker killed under them: are they the same?

Each round starts a fresh service and the same seeded requests (every other one greedy). A round
with ``--kill`` sends SIGKILL to that worker after so many seconds. A stream counts as equal if it
ended without an error and has every token of the undisturbed round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.result import ScenarioResult
from cluster.load.arrivals import Job, draw_jobs
from cluster.load.started_service import ServiceFacts, started_service
from pdserve.errors import PdserveError
from router.client import AsyncClient

SUMMARY = "streams that must survive a killed worker, token for token"


@dataclass(frozen=True, slots=True)
class Stream:
    """``error``: its code, or ""."""

    token_ids: tuple[int, ...]
    num_dispatches: int
    error: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=200, help="generated tokens of each stream")
    parser.add_argument("--kill", nargs="*", default=["prefill", "decode"],
                        choices=("prefill", "decode"))  # fmt: skip
    parser.add_argument("--after-s", type=float, default=5.0, help="seconds until the kill")
    parser.add_argument(
        "flags", nargs="*", default=["--model=smollm2"], help="of pdserve serve, after --"
    )


def run(args: argparse.Namespace) -> ScenarioResult:
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> ScenarioResult:
    rows: list[tuple[str, ...]] = [("round", "ended", "errors", "equal", "dispatches", "s")]
    data: dict[str, object] = {}
    reference: list[Stream] = []
    for victim in ("", *args.kill):
        started = time.perf_counter()
        async with started_service(args.flags) as facts:
            streams = await _round(facts, args, victim)
        elapsed = time.perf_counter() - started
        reference = reference or streams
        name = f"{victim} killed after {args.after_s:g} s" if victim else "undisturbed"
        num_equal = sum(
            not one.error and one.token_ids == other.token_ids
            for one, other in zip(streams, reference, strict=True)
        )
        errors = [stream.error for stream in streams if stream.error]
        dispatches = sum(stream.num_dispatches for stream in streams)
        rows.append((name, str(len(streams) - len(errors)), str(len(errors)), str(num_equal),
                     str(dispatches), f"{elapsed:.0f}"))  # fmt: skip
        data[name] = {"equal": num_equal, "errors": errors, "dispatches": dispatches,
                      "seconds": elapsed}  # fmt: skip
    return ScenarioResult(rows=rows, data=data)


async def _round(facts: ServiceFacts, args: argparse.Namespace, victim: str) -> list[Stream]:
    async with AsyncClient(facts.grpc_target) as client:
        vocab_size = (await client.list_models())[0].vocab_size
        jobs = draw_jobs(args.streams, num_prompt_tokens=args.prompt_tokens,
                         max_tokens=args.tokens, vocab_size=vocab_size, seed="soak")  # fmt: skip
        reading = [asyncio.create_task(_read(client, i, job)) for i, job in enumerate(jobs)]
        if victim:
            await asyncio.sleep(args.after_s)
            _kill(facts.worker_pids, victim)
        return list(await asyncio.gather(*reading))


async def _read(client: AsyncClient, number: int, job: Job) -> Stream:
    token_ids: list[int] = []
    call = client.generate(
        prompt_ids=job.prompt_ids, max_tokens=job.max_tokens, ignore_eos=True,
        temperature=0.0 if number % 2 else 0.8, seed=number,
    )  # fmt: skip
    try:
        async for delta in call:
            token_ids.extend(delta.token_ids)
    except PdserveError as error:
        return Stream(tuple(token_ids), 0, error.code)
    timing = call.timing
    return Stream(tuple(token_ids), timing.num_dispatches if timing else 0, "")


def _kill(pids: Sequence[tuple[str, int]], victim: str) -> None:
    """SIGKILL to the first worker of a role."""
    os.kill(next(pid for role, pid in pids if role == victim), signal.SIGKILL)
