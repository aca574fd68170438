"""What a prefix seen before saves, as one client of a whole, otherwise idle service sees it.

Each round draws a new prefix and sends, one after the other:

    cold        prefix + a tail           nothing of it is known
    seen        prefix + another tail     the prefix is known to both workers
    next turn   cold + its answer + more  the decode worker knows the answer too

Times are the client's. Ratios are of medians over rounds. The first round is not counted. Not
covered: load, several workers of a role, evictions.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass

from benchmarks.result import ScenarioResult
from cluster.load.arrivals import draw_jobs
from cluster.load.started_service import started_service
from cluster.load.table import number, spread_cell
from pdserve.errors import ProtocolError
from pdserve.request_timing import RequestTiming
from router.client import AsyncClient

SUMMARY = "TTFT and KV shipped with a cold prefix, one seen before, and a conversation's next turn"
KINDS = ("cold", "seen", "next turn")


@dataclass(frozen=True, slots=True)
class Sample:
    ttft_s: float
    token_ids: tuple[int, ...]
    timing: RequestTiming


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefix-tokens", type=int, default=2000)
    parser.add_argument("--tail-tokens", type=int, default=16)
    parser.add_argument("--osl", type=int, default=32, help="output tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", default="0")
    parser.add_argument(
        "flags", nargs="*", default=["--model=smollm2"], help="of pdserve serve, after --"
    )


def run(args: argparse.Namespace) -> ScenarioResult:
    samples = asyncio.run(_measure(args))
    cold_s = statistics.median(sample.ttft_s for sample in samples["cold"])
    rows: list[tuple[str, ...]] = [(
        "request", "prompt", "TTFT ms", "of cold %", "prompt tokens cached", "KV tokens shipped",
        "KV MiB shipped",
    )]  # fmt: skip
    for kind, found in samples.items():
        timings = [sample.timing for sample in found]
        rows.append((
            kind,
            spread_cell([timing.num_prompt_tokens for timing in timings]),
            spread_cell([sample.ttft_s * 1e3 for sample in found]),
            number(100 * statistics.median(sample.ttft_s for sample in found) / cold_s),
            spread_cell([timing.prefill_cached_tokens for timing in timings]),
            spread_cell([timing.kv_tokens for timing in timings]),
            spread_cell([timing.kv_bytes / 2**20 for timing in timings]),
        ))  # fmt: skip
    data = {
        "prefix_tokens": args.prefix_tokens, "tail_tokens": args.tail_tokens, "osl": args.osl,
        "flags": args.flags,
        "ttft_s": {kind: [sample.ttft_s for sample in found] for kind, found in samples.items()},
        "cached": {k: [s.timing.prefill_cached_tokens for s in found]
                   for k, found in samples.items()},
        "kv_bytes": {k: [s.timing.kv_bytes for s in found] for k, found in samples.items()},
    }  # fmt: skip
    return ScenarioResult(rows=rows, data=data)


async def _measure(args: argparse.Namespace) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    async with started_service(args.flags) as facts, AsyncClient(facts.grpc_target) as client:
        vocab_size = (await client.list_models())[0].vocab_size
        for number_of_round in range(args.rounds + 1):
            seed = f"{args.seed} {number_of_round}"
            found = await _round(client, args, vocab_size, seed)
            for kind, sample in zip(KINDS, found, strict=True):
                if number_of_round:
                    samples[kind].append(sample)
    return samples


async def _round(
    client: AsyncClient, args: argparse.Namespace, vocab_size: int, seed: str
) -> tuple[Sample, Sample, Sample]:
    (drawn,) = draw_jobs(
        1, num_prompt_tokens=args.prefix_tokens + 3 * args.tail_tokens, max_tokens=args.osl,
        vocab_size=vocab_size, seed=seed,
    )  # fmt: skip
    prefix, rest = drawn.prompt_ids[: args.prefix_tokens], drawn.prompt_ids[args.prefix_tokens :]
    tails = [rest[i * args.tail_tokens : (i + 1) * args.tail_tokens] for i in range(3)]
    cold = await _ask(client, prefix + tails[0], args.osl)
    seen = await _ask(client, prefix + tails[1], args.osl)
    turn = await _ask(client, prefix + tails[0] + cold.token_ids + tails[2], args.osl)
    return cold, seen, turn


async def _ask(client: AsyncClient, prompt_ids: tuple[int, ...], max_tokens: int) -> Sample:
    """Raises PdserveError, also if the service sent no ledger."""
    started_s = time.perf_counter()
    first_s: float | None = None
    token_ids: list[int] = []
    stream = client.generate(
        prompt_ids=prompt_ids, max_tokens=max_tokens, temperature=0.0, ignore_eos=True
    )
    async for delta in stream:
        if delta.token_ids and first_s is None:
            first_s = time.perf_counter()
        token_ids += delta.token_ids
    if first_s is None or stream.timing is None:
        raise ProtocolError("an answer without a token or a ledger")
    return Sample(first_s - started_s, tuple(token_ids), stream.timing)
