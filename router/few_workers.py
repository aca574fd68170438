"""The usual choice among a few workers, one worker after the other.

Arrays (policy.py) cost some fifty microseconds however few their rows are, which is most of what a
decision may take where there are two workers. So the usual demand (a prefill and a decode worker by
cost, none preferred, avoided or barred) is first tried in plain numbers: the same formulas
(costs.py) in the same order of operations, so that both choose alike to the last bit; comparisons
instead of ``min`` and ``max``, which are calls. Whatever is not so, or finds no room, is
policy.py's, which also says why. Pure.
"""

from __future__ import annotations

from math import ceil

from pdserve.types import Role
from router.fleet import Column, Fleet
from router.local_prefill import PrefillPlace
from router.placement import Demand, Placement, PolicyLimits
from router.route_policy import RoutePolicy

MAX_WORKERS = 24  # beyond, arrays are faster


def place_among_few(
    demand: Demand, fleet: Fleet, limits: PolicyLimits, cached: Column
) -> Placement | None:
    """The choice of policy.place_among_many; None: it is not that simple."""
    if not _is_usual(demand, limits):
        return None
    known: list[float] = cached.tolist()
    prefill = _prefill_row(demand, fleet, limits, known)
    if prefill < 0:
        return None
    chosen = fleet.views[prefill]
    if not demand.needs_decode:
        return Placement(chosen.ref, None)
    decode = _decode_row(demand, fleet, limits, known, chosen.exposed.per_token_s)
    return None if decode < 0 else Placement(chosen.ref, fleet.views[decode].ref)


def _is_usual(demand: Demand, limits: PolicyLimits) -> bool:
    return (
        limits.policy is RoutePolicy.COST
        and not limits.colocated
        and limits.local.prefill_place is PrefillPlace.REMOTE
        and demand.redeem_at is None
        and demand.share_at is None
        and not (demand.waits or demand.avoid or demand.prefer)
    )


def _prefill_row(demand: Demand, fleet: Fleet, limits: PolicyLimits, known: list[float]) -> int:
    """Of the best prefill worker with room; -1: none."""
    num_tokens, total = demand.num_context_tokens, demand.max_total_tokens
    hung_after_s, window = limits.hung_after_s, limits.dispatch_window_chunks
    whole = num_tokens * num_tokens
    best, best_cost = -1, (0.0, 0.0, 0.0)
    rows = fleet.rows
    for row in fleet.rows_of[Role.PREFILL]:
        (
            _, is_open, is_blocked, step_age_s, free_blocks, total_blocks, block_size,
            ahead, _, _, _, max_len, chunk, late, late_per_token, fixed, linear, squared, _, _, _,
        ) = rows[row]  # fmt: skip
        if (
            not is_open or is_blocked or step_age_s > hung_after_s
            or total > max_len or total > total_blocks * block_size
            or num_tokens > free_blocks * block_size
        ):  # fmt: skip
            continue
        queue_s = fixed * ceil(ahead / chunk) + linear * ahead
        if ahead >= window * chunk and queue_s >= limits.dispatch_window_s:
            continue
        start, computable = known[row], (num_tokens - 1) // block_size * block_size
        if start > computable:
            start = computable
        left = num_tokens - start
        compute_s = fixed * ceil(left / chunk) + linear * left + squared * (whole - start * start)
        last_chunk = num_tokens if num_tokens < chunk else chunk
        exposed_s = late + late_per_token * last_chunk
        cost = (queue_s + compute_s + exposed_s, ahead, -free_blocks)
        if best < 0 or cost < best_cost:
            best, best_cost = row, cost
    return best


def _decode_row(
    demand: Demand, fleet: Fleet, limits: PolicyLimits, known: list[float], shipped_s: float
) -> int:
    """Of the best decode worker with room; -1: none."""
    num_tokens, total = demand.num_context_tokens, demand.max_total_tokens
    expected = demand.expected_total_tokens or total
    hung_after_s = limits.hung_after_s
    best, best_cost = -1, (0.0, 0.0, 0.0)
    rows = fleet.rows
    for row in fleet.rows_of[Role.DECODE]:
        (
            _, is_open, is_blocked, step_age_s, free_blocks, total_blocks, block_size,
            ahead, kv_tokens, batch, max_legs, max_len, _, _, _, _, _, _, fixed, per_leg, per_token,
        ) = rows[row]  # fmt: skip
        if (
            not is_open or is_blocked or step_age_s > hung_after_s
            or total > max_len or total > total_blocks * block_size
            or num_tokens + 1 > free_blocks * block_size or batch >= max_legs
        ):  # fmt: skip
            continue
        added_s = per_leg + per_token * num_tokens
        step_s = fixed + per_leg * batch + per_token * kv_tokens + added_s
        missing = num_tokens - known[row]
        cost_s = step_s + batch * added_s + shipped_s * (missing if missing > 0.0 else 0.0)
        short = ceil(expected / block_size) - free_blocks
        if short > 0.0:
            cost_s += short * step_s
        cost = (cost_s, ahead, -free_blocks)
        if best < 0 or cost < best_cost:
            best, best_cost = row, cost
    return best
