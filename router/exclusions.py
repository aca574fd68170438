"""Why a worker could not be chosen for a task, in words; the rules are policy.py's, one row each.

A test holds the two together: who is not excluded here is who the policy chooses from. Pure.
"""

from __future__ import annotations

from enum import StrEnum
from math import ceil

from router.costs import ahead_s
from router.fleet import Fleet, WorkerView
from router.placement import Demand, PolicyLimits


class Task(StrEnum):
    """What a candidate is one for."""

    PREFILL = "prefill"
    DECODE = "decode"
    LOCAL = "local"  # prompt and answer at one decode worker


def exclusions(
    row: int, task: Task, demand: Demand, fleet: Fleet, limits: PolicyLimits
) -> tuple[str, ...]:
    """Of one worker, pairs that are barred aside; empty: it had room."""
    view = fleet.views[row]
    if task is Task.PREFILL and demand.redeem_at is not None:
        if view.ref == demand.redeem_at:
            return ()  # it computed the prompt: no room is asked for
        return (f"KV is held by {demand.redeem_at.worker_id}",)
    found = [*_unusable(view, limits), *_too_small(view, demand)]
    if view.blocked:
        found.append("answered busy since its last report")
    num_tokens = demand.num_context_tokens + (task is not Task.PREFILL)
    if num_tokens > view.free_blocks * view.block_size:
        needed = ceil(num_tokens / view.block_size)
        found.append(f"full: {needed} blocks needed, {max(view.free_blocks, 0)} free")
    if task is not Task.PREFILL and view.num_legs >= view.limits.max_running:
        found.append(f"full: all {view.limits.max_running} places taken")
    if task is not Task.DECODE:
        found += _queue(row, view, fleet, limits)
    return tuple(found)


def _unusable(view: WorkerView, limits: PolicyLimits) -> list[str]:
    found = []
    if view.draining or view.status.draining:
        found.append("draining")
    if view.silent:
        found.append("silent: no report for several heartbeats")
    if view.status.step_age_s > limits.hung_after_s:
        found.append(f"hung: in one step for {view.status.step_age_s:.1f} s")
    return found


def _too_small(view: WorkerView, demand: Demand) -> list[str]:
    """For the longest answer, of whatever is there already."""
    total, limits = demand.max_total_tokens, view.limits
    if total > limits.max_model_len:
        return [f"context limit: {total} tokens with the answer, at most {limits.max_model_len}"]
    if total > limits.total_blocks * view.block_size:
        room = limits.total_blocks * view.block_size
        return [f"too small: {total} tokens with the answer, KV of {room} fits"]
    return []


def _queue(row: int, view: WorkerView, fleet: Fleet, limits: PolicyLimits) -> list[str]:
    ahead, queue_s = view.uncomputed_tokens, float(ahead_s(fleet.columns)[row])
    window = limits.dispatch_window_chunks * view.limits.chunk_tokens
    if ahead < window or queue_s < limits.dispatch_window_s:
        return []
    return [f"busy: {ahead} tokens ahead, {queue_s * 1e3:.1f} ms, beyond the dispatch window"]
