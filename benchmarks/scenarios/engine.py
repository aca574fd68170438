"""The engine alone: prefill tokens/s by prompt length, decode tokens/s by batch.

Random token ids, greedy sampling, the whole step as the workers run it (batch building, sampling
and the hop to the engine thread included), no scheduler and no network. Each figure is the median
over repetitions, with the range. Decode counts all rows of the batch. Where the kernels time their
phases (the C ones do), "outside" is what a decode step costs beside them: batch building, sampling,
the hops between threads; the phases are in the last line's data.

On a GPU (docs/gpu.md): ``--device cuda --shape llama-3-8b --card H100`` takes random weights made
on the device and says which part of that card's roofline each figure is.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Collection
from dataclasses import replace
from typing import cast

from benchmarks.against import compare
from benchmarks.random_model import open_random_runner, shape_named
from benchmarks.result import ScenarioResult
from benchmarks.roofline import card_named, decode_fraction, prefill_fraction
from engine.block_pool import BlockPool
from engine.build import build_runner, prepare
from engine.chunking import next_chunk_len
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.modelfiles.costs import Costs, model_costs
from engine.sequence import Sequence
from engine.step import StepRow, StepRunner
from pdserve.clock import MonotonicClock
from pdserve.prepared import ModelConfig
from pdserve.types import Attempt, Request, RequestId, SamplingParams

SUMMARY = "prefill and decode speed of the bare engine"


def add_engine_options(parser: argparse.ArgumentParser, *, dtype: str) -> None:
    """``dtype``: the default."""
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default=dtype, choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--native", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--chunk-tokens", type=int, default=256)


def engine_config(args: argparse.Namespace) -> EngineConfig:
    return replace(
        EngineConfig(), model=args.model, dtype=args.dtype, device=args.device,
        threads=args.threads, native=args.native, chunk_tokens=args.chunk_tokens,
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser, dtype="float32")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--decode-graphs", default="on", choices=("on", "off"))
    parser.add_argument("--shape", default="", help="random weights of this shape, not --model")
    parser.add_argument("--card", default="", help="H100, A100, L4: part of its roofline")
    parser.add_argument("--prefill", type=int, nargs="*", default=[128, 512, 2048])
    parser.add_argument("--decode", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=128, help="context of decode rows (tokens)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="decode steps in one repetition")
    peers = parser.add_argument_group("beside peers", "cells, types and threads are fixed or here")
    peers.add_argument(
        "--against",
        default="",
        metavar="PEER=PYTHON,...",
        help="peers (llama-cpp, vllm, transformers) and the Python that has each, in turns",
    )
    peers.add_argument("--rounds", type=int, default=5)
    peers.add_argument("--cells", default="", help="only those with this in their name, as 'b=1'")
    peers.add_argument(
        "--against-dtypes", nargs="*", default=["bfloat16", "float32"],
        choices=("bfloat16", "float32", "int8"),
        help="int8: Q8_0 of llama.cpp beside --weights int8",
    )  # fmt: skip
    peers.add_argument("--against-threads", type=int, nargs="*", default=[2, 1])


def run(args: argparse.Namespace) -> ScenarioResult:
    if args.against:
        return compare(args)
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> ScenarioResult:
    config = replace(
        engine_config(args), attention=args.attention, decode_graphs=args.decode_graphs
    )
    runner, shape = _open(config, args)
    rows = [("case", "tokens/s", "min", "max", "outside ms")]
    data: dict[str, object] = {"device": runner.device, "dtype": args.dtype, "repeat": args.repeat}
    try:
        for length in args.prefill:
            rates = [await _prefill(runner, length, args, i) for i in range(args.repeat + 1)][1:]
            _add(rows, data, f"prefill {length}", rates)
        for batch in args.decode:
            name = f"decode b={batch} at {args.context}"
            runs = [await _decode(runner, batch, args, i) for i in range(args.repeat + 1)][1:]
            _add(rows, data, name, [rate for rate, _ in runs], _phase_ms(runs, batch))
    finally:
        await runner.close()
    if args.card:
        _place(rows, data, args, model_costs(shape, args.dtype))
    return ScenarioResult(rows=rows, data=data)


def _open(config: EngineConfig, args: argparse.Namespace) -> tuple[StepRunner, ModelConfig]:
    if args.shape:
        rows = max(args.decode, default=0)
        num_tokens = max(
            [*args.prefill, rows * (args.context + args.steps + 2 + config.block_size)]
        )
        return open_random_runner(config, args.shape, num_tokens), shape_named(args.shape)
    prepared = prepare(config, print)
    return build_runner(config, prepared, MonotonicClock()), prepared.config


def _place(
    rows: list[tuple[str, ...]], data: dict[str, object], args: argparse.Namespace, costs: Costs
) -> None:
    """Add the part of the card's roofline to every row."""
    card = card_named(args.card, args.dtype)
    found = {}
    for length in args.prefill:
        name = f"prefill {length}"
        found[name] = prefill_fraction(costs, card, length, _median(data, name))
    for batch in args.decode:
        name = f"decode b={batch} at {args.context}"
        context = args.context + args.steps // 2
        found[name] = decode_fraction(costs, card, context, batch, _median(data, name))
    rows[:] = [(*rows[0], f"of {card.name}"), *((*row, f"{found[row[0]]:.1%}") for row in rows[1:])]
    data["card"] = {"name": card.name, "parts": found}


def _median(data: dict[str, object], name: str) -> float:
    return float(cast(dict[str, float], data[name])["median"])


def _add(
    rows: list[tuple[str, ...]],
    data: dict[str, object],
    name: str,
    rates: list[float],
    phase_ms: dict[str, float] | None = None,
) -> None:
    outside = f"{phase_ms['outside']:.2f}" if phase_ms else ""
    rows.append((name, f"{statistics.median(rates):,.1f}", f"{min(rates):,.1f}",
                 f"{max(rates):,.1f}", outside))  # fmt: skip
    data[name] = {"median": statistics.median(rates), "all": rates, "phase_ms": phase_ms or {}}


def _phase_ms(runs: list[tuple[float, dict[str, float]]], batch: int) -> dict[str, float]:
    """Median milliseconds of a decode step in each phase, and outside of all; {} if untimed."""
    steps = [
        {**phases, "outside": batch / rate - sum(phases.values())}
        for rate, phases in runs
        if phases
    ]
    names = steps[0] if steps else ()
    return {name: 1e3 * statistics.median(step[name] for step in steps) for name in names}


def drawn_sequence(
    runner: StepRunner, pool: BlockPool, length: int, num_blocks: int, seed: int
) -> Sequence:
    draw = random.Random(seed)
    ids = tuple(draw.randrange(runner.vocab_size) for _ in range(length))
    sampling = SamplingParams(max_tokens=4096, ignore_eos=True)
    lease = pool.lease(num_blocks)
    if lease is None:
        raise SystemExit(f"{num_blocks} KV blocks do not fit; lower the batch or the context")
    return Sequence(Attempt(Request(RequestId(f"bench-{seed}"), ids, sampling), 1), lease)


async def compute_prompt(runner: StepRunner, sequence: Sequence, chunk_tokens: int) -> None:
    total = len(sequence.token_ids)
    while sequence.num_computed < total:
        length = next_chunk_len(sequence.num_computed, total, chunk_tokens)
        end = sequence.num_computed + length
        result = await runner.run([StepRow(sequence, sequence.num_computed, length, end == total)])
        sequence.num_computed = end
        if result[0] is not None:
            sequence.append(result[0].token_id)


async def decode_steps(runner: StepRunner, sequences: Collection[Sequence], count: int) -> None:
    """Each adds a token to each sequence."""
    for _ in range(count):
        rows = [StepRow(s, s.num_computed, 1, True) for s in sequences]
        for sequence, sampled in zip(sequences, await runner.run(rows), strict=True):
            assert sampled is not None
            sequence.num_computed += 1
            sequence.append(sampled.token_id)


async def _prefill(runner: StepRunner, length: int, args: argparse.Namespace, seed: int) -> float:
    pool = BlockPool(runner.buffers.num_blocks)
    sequence = drawn_sequence(runner, pool, length, runner.layout.num_blocks(length), seed)
    started = time.perf_counter()
    await compute_prompt(runner, sequence, args.chunk_tokens)
    elapsed = time.perf_counter() - started
    sequence.lease.release()
    return length / elapsed


async def _decode(
    runner: StepRunner, batch: int, args: argparse.Namespace, seed: int
) -> tuple[float, dict[str, float]]:
    """(tokens/s, seconds of a step in each phase)"""
    pool = BlockPool(runner.buffers.num_blocks)
    num_blocks = runner.layout.num_blocks(args.context + args.steps + 2)
    sequences = [
        drawn_sequence(runner, pool, args.context, num_blocks, seed * 1000 + i)
        for i in range(batch)
    ]
    for sequence in sequences:
        await compute_prompt(runner, sequence, args.chunk_tokens)
    _phases(runner)
    started = time.perf_counter()
    await decode_steps(runner, sequences, args.steps)
    elapsed = time.perf_counter() - started
    phases = {name: seconds / args.steps for name, seconds in _phases(runner).items()}
    for sequence in sequences:
        sequence.lease.release()
    return batch * args.steps / elapsed, phases


def _phases(runner: StepRunner) -> dict[str, float]:
    """Seconds in each phase since the last call."""
    return runner.phase_seconds() if isinstance(runner, ModelRunner) else {}
