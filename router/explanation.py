"""Why a request went where it went: what was known of each candidate, and its cost, as lines.

Made on demand (``x-pdserve-explain``) from the very numbers the policy looked at, for people: the
best candidates of each role first, the chosen ones marked. Pure. Not covered: why a request waited.
"""

from __future__ import annotations

import numpy as np

from router.costs import DecodeParts, PrefillParts, decode_parts, prefill_parts
from router.fleet import Column, Fleet, Mask, WorkerRef
from router.policy import Colocated, Demand, Placement, PolicyLimits

MAX_CANDIDATES = 8  # of each role


def explain(
    demand: Demand,
    fleet: Fleet,
    limits: PolicyLimits,
    cached: Column | None,
    choice: Placement | Colocated,
) -> str:
    """One line for the request, one for each candidate; times in ms."""
    known = np.zeros(len(fleet)) if cached is None else cached
    chosen = workers_of(choice)
    where = choice.where.value if isinstance(choice, Colocated) else "remote"
    lines = [
        f"{demand.num_context_tokens} tokens, {len(fleet)} workers, policy {limits.policy.value},"
        f" prefill {where}"
    ]
    prefill = prefill_parts(fleet.columns, demand.num_context_tokens, known)
    shipped_s = 0.0
    if isinstance(choice, Placement):
        shipped_s = float(fleet.columns.exposed_s_per_token[fleet.row_of[choice.prefill]])
    total = demand.expected_total_tokens or demand.max_total_tokens
    decode = decode_parts(fleet.columns, demand.num_context_tokens, total, known, shipped_s)
    is_prefill = fleet.columns.is_prefill > 0
    computes_there = isinstance(choice, Colocated)
    roles: tuple[tuple[str, Mask, PrefillParts | DecodeParts], ...] = (
        ("prefill", ~is_prefill if computes_there else is_prefill, prefill),
        ("decode", ~is_prefill, decode),
    )
    for role, mask, parts in roles:
        costs = {row: float(parts.total_s[row]) for row in np.flatnonzero(mask).tolist()}
        ranked = sorted(costs, key=lambda row: (fleet.views[row].ref not in chosen, costs[row]))
        for row in ranked[:MAX_CANDIDATES]:
            view = fleet.views[row]
            mark = "*" if view.ref in chosen else " "
            lines.append(
                f"{mark} {role} {view.ref.worker_id}: {costs[row] * 1e3:.2f} ms"
                f" = {_terms(parts, row)}; cached {int(known[row])} tokens,"
                f" free {view.free_blocks} blocks{_remark(fleet, row, demand)}"
            )
    return "\n".join(lines)


def workers_of(choice: Placement | Colocated) -> set[WorkerRef]:
    """All that take part."""
    if isinstance(choice, Colocated):
        return {choice.worker}
    return {choice.prefill} if choice.decode is None else {choice.prefill, choice.decode}


def _terms(parts: PrefillParts | DecodeParts, row: int) -> str:
    named = zip(parts._fields, parts, strict=True)
    return " + ".join(
        f"{name.removesuffix('_s')} {float(values[row]) * 1e3:.2f}" for name, values in named
    )


def _remark(fleet: Fleet, row: int, demand: Demand) -> str:
    view = fleet.views[row]
    remarks = [
        words
        for is_so, words in (
            (view.draining or view.status.draining, "draining"),
            (view.blocked, "answered busy"),
            (view.ref.worker_id in demand.avoid, "failed on it before"),
            (view.ref.worker_id in demand.prefer, "its session's"),
        )
        if is_so
    ]
    return f"; {', '.join(remarks)}" if remarks else ""
