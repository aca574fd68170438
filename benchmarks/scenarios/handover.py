"""What handing a request over costs: one prompt at a time through a service whose decode is idle.

For each transport a service of one prefill and one decode worker is up; rounds go through all of
them and through the bare engine of this process, which computes the same prompt with the same
chunks and threads. Columns, medians over rounds:

    TTFT            as the client sees it; "over bare" is its excess over the bare engine's prefill
    exposed         first token at the router -> verified commit at the router (the ledger's)
    gap 1-2         between the client's first and second token; "steps": in steady decode gaps

The row "recompute" is what not shipping would cost: the decode worker computing the prompt itself,
at the bare engine's speed, where "exposed" is what shipping costs. The first round is not counted.
Not covered: load, several hosts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.result import ScenarioResult
from benchmarks.scenarios.engine import compute_prompt, drawn_sequence
from cluster.load.arrivals import draw_jobs
from cluster.load.started_service import started_service
from cluster.load.table import number
from engine.block_pool import BlockPool
from engine.build import build_runner, prepare
from engine.config import EngineConfig
from engine.step import StepRunner
from pdserve.clock import MonotonicClock
from pdserve.errors import ProtocolError
from router.client import AsyncClient

SUMMARY = "what handing a request over costs, by transport, beside the bare engine"
_KV_MIB = 512.0  # of each worker: all of them are up at once
_COLUMNS = ("way", "TTFT ms", "over bare ms", "over bare %", "prefill ms", "exposed ms",
            "of prefill %", "gap 1-2 ms", "steps", "KV MiB")  # fmt: skip


@dataclass(frozen=True, slots=True)
class HandOver:
    """One request; seconds."""

    ttft_s: float
    prefill_s: float
    exposed_s: float
    first_gap_s: float
    step_s: float  # median of the later gaps
    kv_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--engine", default=EngineConfig().engine, help="as of pdserve serve")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--isl", type=int, default=2048, help="prompt tokens")
    parser.add_argument("--osl", type=int, default=8, help="output tokens, 3 at least")
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transports", nargs="+", default=["shm", "tcp", "grpc"])
    parser.add_argument("--seed", default="0")


def run(args: argparse.Namespace) -> ScenarioResult:
    bare_s, found = asyncio.run(_measure(args))
    bare_ms = 1e3 * statistics.median(bare_s)
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for transport, samples in found.items():
        rows.append((transport, *(number(value) for value in _cells(samples, bare_ms))))
    rows.append(("recompute", number(bare_ms), *[""] * (len(_COLUMNS) - 2)))
    data = {
        "isl": args.isl, "osl": args.osl, "chunk_tokens": args.chunk_tokens, "dtype": args.dtype,
        "bare_prefill_s": bare_s,
        "samples": {name: [_plain(each) for each in samples] for name, samples in found.items()},
    }  # fmt: skip
    return ScenarioResult(rows=rows, data=data)


def _plain(sample: HandOver) -> dict[str, float]:
    return {name: getattr(sample, name) for name in HandOver.__slots__}


def _cells(samples: Sequence[HandOver], bare_ms: float) -> tuple[float, ...]:
    ttft_ms, prefill_ms, exposed_ms, gap_ms, step_ms = (
        1e3 * statistics.median(getattr(each, name) for each in samples)
        for name in ("ttft_s", "prefill_s", "exposed_s", "first_gap_s", "step_s")
    )
    return (
        ttft_ms, ttft_ms - bare_ms, 100 * (ttft_ms / bare_ms - 1), prefill_ms, exposed_ms,
        100 * exposed_ms / prefill_ms, gap_ms, gap_ms / step_ms, samples[0].kv_bytes / 2**20,
    )  # fmt: skip


async def _measure(args: argparse.Namespace) -> tuple[list[float], dict[str, list[HandOver]]]:
    config = replace(
        EngineConfig(), model=args.model, engine=args.engine, dtype=args.dtype, threads=1,
        chunk_tokens=args.chunk_tokens, kv_memory_mib=_KV_MIB,
    )  # fmt: skip
    runner = build_runner(config, prepare(config, print), MonotonicClock())
    bare_s: list[float] = []
    found: dict[str, list[HandOver]] = {name: [] for name in args.transports}
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runner.close)
        clients = {name: await _service(stack, args, name) for name in args.transports}
        for number_of_round in range(args.rounds + 1):
            bare = await _bare_prefill(runner, args, number_of_round)
            samples = {
                name: await _hand_over(client, args, runner.vocab_size, number_of_round)
                for name, client in clients.items()
            }
            if number_of_round:
                bare_s.append(bare)
                for name, sample in samples.items():
                    found[name].append(sample)
    return bare_s, found


async def _service(
    stack: contextlib.AsyncExitStack, args: argparse.Namespace, transport: str
) -> AsyncClient:
    flags = (
        f"--model={args.model}", f"--engine={args.engine}", f"--dtype={args.dtype}",
        f"--chunk-tokens={args.chunk_tokens}", f"--kv-memory-mib={_KV_MIB}", "--threads=1",
        "--prefix-cache=off", f"--kv-transports={transport}",
    )  # fmt: skip
    facts = await stack.enter_async_context(started_service(flags))
    return await stack.enter_async_context(AsyncClient(facts.grpc_target))


async def _bare_prefill(runner: StepRunner, args: argparse.Namespace, seed: int) -> float:
    pool = BlockPool(runner.buffers.num_blocks)
    sequence = drawn_sequence(runner, pool, args.isl, runner.layout.num_blocks(args.isl), seed)
    started_s = time.perf_counter()
    await compute_prompt(runner, sequence, args.chunk_tokens)
    elapsed_s = time.perf_counter() - started_s
    sequence.lease.release()
    return elapsed_s


async def _hand_over(
    client: AsyncClient, args: argparse.Namespace, vocab_size: int, seed: int
) -> HandOver:
    """Raises ProtocolError if a token has no time of its own or the service sent no ledger."""
    (job,) = draw_jobs(1, num_prompt_tokens=args.isl, max_tokens=args.osl, vocab_size=vocab_size,
                       seed=f"{args.seed} {seed}")  # fmt: skip
    started_s = time.perf_counter()
    times_s: list[float] = []
    stream = client.generate(
        prompt_ids=job.prompt_ids, max_tokens=args.osl, temperature=0.0, ignore_eos=True
    )
    async for delta in stream:
        times_s += [time.perf_counter()] * len(delta.token_ids)
    timing = stream.timing
    if timing is None or len(times_s) < 3:
        raise ProtocolError("an answer of fewer than 3 tokens, or without a ledger")
    gaps_s = [later - earlier for earlier, later in zip(times_s, times_s[1:], strict=False)]
    return HandOver(
        ttft_s=times_s[0] - started_s,
        prefill_s=timing.prefill_compute_s,
        exposed_s=timing.kv_exposed_s,
        first_gap_s=gaps_s[0],
        step_s=statistics.median(gaps_s[1:]),
        kv_bytes=timing.kv_bytes,
    )
