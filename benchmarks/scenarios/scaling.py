"""How the bare engine's steps grow: prefill by prompt length, decode by batch and context.

Each case is the median over repetitions, whole cases interleaved (one repetition of each, then the
next). Prompts are random ids computed in chunks as workers do. Decode rows stand at their context
over KV that nobody computed (zeros, in blocks of their own): time does not depend on values, and a
table of long contexts needs no hours of prefill. Cases that do not fit the KV memory are left out
and named. The fits are least squares of relative errors: prefill a + b n + c n² over whole
prompts, decode a + b batch + c KV tokens (pdserve/step_cost.py).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import asdict, dataclass, field, replace

from benchmarks.result import ScenarioResult
from benchmarks.scenarios.engine import (
    add_engine_options,
    compute_prompt,
    decode_steps,
    engine_config,
)
from cluster.load.table import spread_cell
from engine.block_pool import BlockPool
from engine.build import build_runner, prepare
from engine.sequence import Sequence
from engine.step import StepRunner
from pdserve.clock import MonotonicClock
from pdserve.step_cost import DecodeCost, Features, Fit, PrefillCost, StepCost, fit
from pdserve.types import Attempt, Request, RequestId, SamplingParams

SUMMARY = "prefill by prompt length, decode by batch and context, and the costs fitted to them"

HEAD = ("case", "tokens/s", "ms", "fitted ms", "off %")
NUM_SPARE_TOKENS = 64  # decode steps a sequence has room for


@dataclass
class Case:
    """``size``: tokens of a prompt, or (batch, context) of a decode step."""

    name: str
    num_tokens: int  # computed in one go
    features: Features
    size: tuple[int, int]
    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser, dtype="bfloat16")
    parser.add_argument("--kv-memory-mib", type=float, default=4096.0)
    parser.add_argument(
        "--prefill", type=int, nargs="*", default=[128, 256, 512, 1024, 2048, 4096, 8192]
    )
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--context", type=int, nargs="*", default=[128, 512, 2048, 8000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="decode steps in one repetition")


def run(args: argparse.Namespace) -> ScenarioResult:
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> ScenarioResult:
    config = replace(engine_config(args), kv_memory_mib=args.kv_memory_mib)
    runner = build_runner(config, prepare(config, print), MonotonicClock())
    prefill = [_prefill_case(n) for n in args.prefill]
    decode, too_large = _decode_cases(runner, args)
    try:
        for repetition in range(args.repeat + 1):  # the first warms up: pages, scratch, caches
            for case in prefill:
                _keep(case, await _time_prefill(runner, case, args, repetition), repetition)
            for case in decode:
                _keep(case, await _time_decode(runner, case, args), repetition)
    finally:
        await runner.close()
    return _result(runner, args, prefill, decode, too_large)


def _keep(case: Case, seconds: float, repetition: int) -> None:
    if repetition:
        case.seconds.append(seconds)


def _prefill_case(num_tokens: int) -> Case:
    features = PrefillCost.features(0, num_tokens)
    return Case(f"prefill {num_tokens:,}", num_tokens, features, (1, num_tokens))


def _decode_cases(runner: StepRunner, args: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """What fits, and the names of what does not."""
    cases, too_large = [], []
    for context in args.context:
        needed = runner.layout.num_blocks(context + NUM_SPARE_TOKENS)
        for batch in args.batch:
            name = f"decode b={batch} at {context:,}"
            if batch * needed > runner.buffers.num_blocks:
                too_large.append(name)
                continue
            features = DecodeCost.features(batch, batch * context)
            cases.append(Case(name, batch, features, (batch, context)))
    return cases, too_large


def _sequence(pool: BlockPool, runner: StepRunner, ids: tuple[int, ...]) -> Sequence:
    lease = pool.lease(runner.layout.num_blocks(len(ids) + NUM_SPARE_TOKENS))
    if lease is None:
        raise SystemExit(f"a prompt of {len(ids)} tokens does not fit; raise --kv-memory-mib")
    sampling = SamplingParams(max_tokens=NUM_SPARE_TOKENS, ignore_eos=True)
    return Sequence(Attempt(Request(RequestId("scaling"), ids, sampling), 1), lease)


async def _time_prefill(
    runner: StepRunner, case: Case, args: argparse.Namespace, seed: int
) -> float:
    draw = random.Random(seed)
    ids = tuple(draw.randrange(runner.vocab_size) for _ in range(case.num_tokens))
    sequence = _sequence(BlockPool(runner.buffers.num_blocks), runner, ids)
    started = time.perf_counter()
    await compute_prompt(runner, sequence, args.chunk_tokens)
    elapsed = time.perf_counter() - started
    sequence.lease.release()
    return elapsed


async def _time_decode(runner: StepRunner, case: Case, args: argparse.Namespace) -> float:
    """Seconds of one step."""
    batch, context = case.size
    pool = BlockPool(runner.buffers.num_blocks)
    ids = (0,) * (context + 1)
    sequences = [_sequence(pool, runner, ids) for _ in range(batch)]
    for sequence in sequences:
        sequence.num_computed = context
    started = time.perf_counter()
    await decode_steps(runner, sequences, args.steps)
    elapsed = time.perf_counter() - started
    for sequence in sequences:
        sequence.lease.release()
    return elapsed / int(args.steps)


def _result(
    runner: StepRunner,
    args: argparse.Namespace,
    prefill: list[Case],
    decode: list[Case],
    too_large: list[str],
) -> ScenarioResult:
    rows: list[tuple[str, ...]] = [HEAD]
    data: dict[str, object] = {"device": runner.device, "dtype": args.dtype}
    cost = StepCost()
    for name, cases in (("prefill", prefill), ("decode", decode)):
        if not cases:
            continue
        found = fit([(case.features, case.median_s) for case in cases], is_relative=True)
        rows += [_row(case, found, index) for index, case in enumerate(cases)]
        rows.append(_fit_row(name, found))
        data[f"{name} fit"] = asdict(found)
        if name == "prefill":
            cost = replace(cost, prefill=PrefillCost(*found.coefficients))
        else:
            cost = replace(cost, decode=DecodeCost(*found.coefficients))
    rows += [(name, "does not fit", "", "", "") for name in too_large]
    data["cost"] = asdict(cost)
    data["cases"] = [
        {"name": case.name, "features": case.features, "seconds": case.seconds}
        for case in (*prefill, *decode)
    ]
    return ScenarioResult(rows=rows, data=data)


def _row(case: Case, found: Fit, index: int) -> tuple[str, ...]:
    fitted_s = case.median_s - found.residuals_s[index]
    return (
        case.name,
        spread_cell([case.num_tokens / seconds for seconds in case.seconds]),
        spread_cell([1e3 * seconds for seconds in case.seconds]),
        spread_cell([1e3 * fitted_s]),
        f"{100 * found.residuals_s[index] / case.median_s:+.1f}",
    )


def _fit_row(name: str, found: Fit) -> tuple[str, ...]:
    a, b, c = found.coefficients
    unit, other = ("token", "token²") if name == "prefill" else ("sequence", "KV token")
    return (
        f"{name} fit",
        f"{1e3 * a:.3g} ms + {1e6 * b:.4g} µs a {unit} + {1e9 * c:.4g} ns a {other}",
        f"R² {found.r_squared:.4f}",
        f"rms {1e3 * found.rms_residual_s:.3g} ms",
        "",
    )
