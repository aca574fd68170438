"""How long the router thinks: one decision over many workers and a large prefix index.

No service: an index is filled with chains of random hashes, each held by a few workers, and a fleet
of workers under random load is asked for a place for prompts that lie in it. Timed apart:

    hash      naming the blocks of the prompt (once a request)
    renew     one worker has reported since: its numbers are taken over
    look up   who has how much of it
    place     costs of all candidates and the choice
    keep      what the decision was made from, for `pdserve explain`
    decide    the last four together, what is spent on each decision

Half the workers are prefill, half decode workers; all are candidates. Each chain is held by a few
workers, by each of them up to another block of it. Not covered: making views of real sessions,
several processes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.result import ScenarioResult
from cluster.load.table import number
from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.types import RequestId, Role, WorkerId, WorkerLimits, WorkerStatus
from router.config import RouterConfig
from router.decision_log import Asker, Considered, DecisionLog, KeptDecision
from router.fleet import Column, Fleet, WorkerRef, WorkerView
from router.known_caches import KnownCaches
from router.policy import NO_PAIRS, Decision, Demand, PolicyLimits, place
from router.prefix_index import Hashes, PrefixIndex
from router.prompt_hashes import PromptHashes

SUMMARY = "one routing decision: time and memory by number of workers and size of the prefix index"
BLOCK_SIZE = 16
PARTS = ("hash", "renew", "look_up", "place", "keep", "decide")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 16, 1000])
    parser.add_argument("--blocks", type=int, default=10_000_000, help="different blocks indexed")
    parser.add_argument("--prompt-tokens", type=int, default=8192)
    parser.add_argument("--holders", type=int, default=3, help="workers that have a chain")
    parser.add_argument("--decisions", type=int, default=300)


def run(args: argparse.Namespace) -> ScenarioResult:
    rows: list[tuple[str, ...]] = [(
        "workers", "blocks", "table MiB", "of it used %", "hash us", "renew us", "look up us",
        "place us", "keep us", "decide us", "p99 us", "cpu us", "cpu p99 us",
        "limit us",
    )]  # fmt: skip
    data: list[dict[str, object]] = []
    for num_workers in args.workers:
        found = _measure(args, num_workers)
        limit_us = 50 + num_workers
        rows.append((
            str(num_workers), str(found["blocks"]), number(float(found["table_mib"])),
            number(100 * float(found["fill"])),
            *(number(float(found[f"{name}_us"])) for name in PARTS),
            *(number(float(found[f"{name}_us"])) for name in ("decide_p99", "cpu", "cpu_p99")),
            str(limit_us),
        ))  # fmt: skip
        data.append({"workers": num_workers, "limit_us": limit_us, **found})
    return ScenarioResult(rows=rows, data={"prompt_tokens": args.prompt_tokens, "rows": data})


def _measure(args: argparse.Namespace, num_workers: int) -> dict[str, float]:
    draw = np.random.default_rng(num_workers)
    caches = KnownCaches(args.blocks)
    index = caches.index
    views = [_view(number, draw) for number in range(num_workers)]
    for view in views:
        caches.join(view.ref)
    chains = _fill(index, args, draw)
    fleet = Fleet.of(views)
    limits = PolicyLimits(dispatch_window_chunks=1000)
    demand = Demand(args.prompt_tokens, args.prompt_tokens + 256)
    asked = [chains[draw.integers(len(chains))] for _ in range(args.decisions)]
    ids = draw.integers(0, 50_000, size=args.prompt_tokens).tolist()
    (space,) = fleet.spaces
    cached = [caches.cached_tokens(fleet, {space: chain}) for chain in asked]
    reported = [draw.integers(num_workers) for _ in range(args.decisions)]

    def renew(i: int) -> None:
        renewed = views.copy()
        renewed[reported[i]] = replace(views[reported[i]])
        fleet.refresh(renewed)

    log, numbers = DecisionLog(RouterConfig().explain_decisions), itertools.count()

    def keep(decision: Decision, known: Column) -> None:
        considered = Considered(decision, demand, known, NO_PAIRS)
        asker = Asker(RequestId("req"), next(numbers), 0.0, salted=False)
        log.keep(KeptDecision(asker, 1, 0.0, considered, fleet.views))

    def decide(i: int) -> None:
        renew(i)
        known = caches.cached_tokens(fleet, {space: asked[i]})
        keep(place(demand, fleet, limits, cached=known), known)

    some = place(demand, fleet, limits, cached=cached[0])
    for _ in range(2 * RouterConfig().explain_decisions):
        keep(some, cached[0])

    timed = {
        "hash": _times(args.decisions // 10, lambda i: PromptHashes("").of([space], ids)),
        "renew": _times(args.decisions, renew),
        "look_up": _times(args.decisions, lambda i: index.depths(asked[i])),
        "place": _times(args.decisions, lambda i: place(demand, fleet, limits, cached=cached[i])),
        "keep": _times(args.decisions, lambda i: keep(some, cached[i])),
        "decide": _times(args.decisions, decide),
    }
    result = {f"{name}_us": statistics.median(taken.elapsed_us) for name, taken in timed.items()}
    decisions = timed["decide"]
    result["decide_p99_us"] = float(np.quantile(decisions.elapsed_us, 0.99))
    result["cpu_us"] = statistics.median(decisions.cpu_us)
    result["cpu_p99_us"] = float(np.quantile(decisions.cpu_us, 0.99))
    result["blocks"] = index.num_blocks
    result["table_mib"] = index.num_bytes / 2**20
    result["fill"] = index.num_blocks * 12 / index.num_bytes
    result["lost_blocks"] = index.num_untold
    result["sets"] = index.num_sets
    return result


def _fill(index: PrefixIndex, args: argparse.Namespace, draw: np.random.Generator) -> list[Hashes]:
    length = args.prompt_tokens // BLOCK_SIZE
    chains = [
        draw.integers(1, 2**64, size=length, dtype=np.uint64)
        for _ in range(max(1, args.blocks // length))
    ]
    at_once = 64  # chains in one call, as a report of a worker that tells all it has
    for start in range(0, len(chains), at_once):
        several = chains[start : start + at_once]
        holders = draw.choice(index.num_bits, min(args.holders, index.num_bits), replace=False)
        for bit in holders.tolist():
            ends = draw.integers(length // 2, length + 1, size=len(several)).tolist()
            parts = [chain[:end] for chain, end in zip(several, ends, strict=True)]
            index.store(bit, np.concatenate(parts))
    return chains


def _view(bit: int, draw: np.random.Generator) -> WorkerView:
    cost = StepCost(PrefillCost(1e-3, 1e-4, 1e-9), DecodeCost(5e-3, 5e-4, 1e-7))
    status = WorkerStatus(
        total_blocks=100_000, free_blocks=int(draw.integers(10_000, 100_000)),
        queued_tokens=int(draw.integers(0, 5000)), num_running=int(draw.integers(0, 60)),
        running_tokens=int(draw.integers(0, 100_000)), cost=cost,
    )  # fmt: skip
    return WorkerView(
        WorkerRef(WorkerId(f"w{bit}"), "a", bit), Role.DECODE if bit % 2 else Role.PREFILL,
        WorkerLimits(32_768, 100_000, 256, 64, 50_000), BLOCK_SIZE, status,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Taken:
    """By each call."""

    elapsed_us: list[float]
    cpu_us: list[float]


def _times(num: int, call: Callable[[int], object]) -> _Taken:
    taken = _Taken([], [])
    for i in range(num):
        started_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        call(i)
        cpu_ns, ended_ns = time.thread_time_ns() - cpu_ns, time.perf_counter_ns()
        taken.elapsed_us.append((ended_ns - started_ns) / 1e3)
        taken.cpu_us.append(cpu_ns / 1e3)
    return taken
