"""Why a request went where it went: a kept decision (decision_log.py) as values for people.

Worked out when somebody asks, by the policy's own formulas from the very numbers it looked at:
every candidate with its cost by part, what excluded it, and by which rule the chosen one was best.
Pure.
Not covered: what a request waited for before it was sent, other than the queue's length in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdserve.explained import Candidate, CostPart, RequestDecisions, RouteDecision
from router.costs import DecodeParts, PrefillParts, decode_parts, prefill_parts
from router.decision_log import Considered, KeptDecision, KeptRequest
from router.exclusions import Task, exclusions
from router.fleet import Column, Fleet, WorkerRef
from router.local_prefill import PrefillPlace, Where
from router.place_reason import place_reason
from router.policy import Colocated, Decision, Look, Placement, PolicyLimits, Unplaced
from router.route_policy import RoutePolicy

MAX_CANDIDATES = 64  # of each task
_SESSION = "its session's last worker"
_RULES = {
    RoutePolicy.LEAST_LOADED: "least loaded",
    RoutePolicy.ROUND_ROBIN: "its turn",
    RoutePolicy.POWER_OF_TWO: "the less loaded of two drawn",
}


@dataclass(frozen=True, slots=True)
class _Row:
    """A candidate for one task, by its row of the fleet."""

    row: int
    is_chosen: bool
    excluded: tuple[str, ...]
    cost_s: float
    parts: tuple[CostPart, ...]


def explained(
    kept: KeptDecision,
    limits: PolicyLimits,
    *,
    ended: str = "",
    waits: str = "not sent",
    max_candidates: int = MAX_CANDIDATES,
) -> RouteDecision:
    """``waits``: why it was not sent, if the decision itself does not say so."""
    decision, demand = kept.considered.decision, kept.considered.demand
    fleet = Fleet.of(kept.views)
    known = kept.considered.cached
    look = Look(demand, fleet, limits, np.zeros(len(fleet)) if known is None else known)
    candidates: list[Candidate] = []
    num_found = 0
    for task in _tasks(kept, limits):
        ranked = _ranked(task, look, kept)
        why = _why(task, look, decision, ranked) if ranked and ranked[0].is_chosen else ""
        candidates += [_candidate(each, task, look, why) for each in ranked[:max_candidates]]
        num_found += len(ranked)
    place = place_why = ""
    unsent = "" if kept.attempt else waits
    if kept.attempt and not isinstance(decision, Unplaced):
        place = (decision.where if isinstance(decision, Colocated) else Where.REMOTE).value
        place_why = place_reason(decision, look)
    return RouteDecision(
        attempt=kept.attempt,
        at_s=kept.at_s - kept.asker.arrived_s,
        waits=decision.reason.value if isinstance(decision, Unplaced) else unsent,
        prefill_place=place,
        place_reason=place_why,
        num_context_tokens=demand.num_context_tokens,
        expected_tokens=demand.expected_total_tokens or demand.max_total_tokens,
        max_tokens=demand.max_total_tokens,
        num_workers=len(fleet),
        candidates=tuple(candidates),
        num_left_out=num_found - len(candidates),
        ended=ended,
    )


def explained_request(
    kept: KeptRequest, waiting: KeptDecision | None, limits: PolicyLimits
) -> RequestDecisions:
    """All that is kept of it, and, while it is queued, why it waits now."""
    decisions = [
        explained(each, limits, ended=kept.endings.get(each.attempt, "")) for each in kept.decisions
    ]
    if waiting is not None:
        first = "others come before it in the queue"
        decisions.append(explained(waiting, limits, waits=first))
    return RequestDecisions(
        kept.asker.request_id, limits.policy.value, kept.asker.salted, tuple(decisions)
    )


def workers_of(choice: Placement | Colocated) -> set[WorkerRef]:
    """All that take part."""
    if isinstance(choice, Colocated):
        return {choice.worker}
    return {choice.prefill} if choice.decode is None else {choice.prefill, choice.decode}


def explanation_text(decision: RouteDecision) -> str:
    """One line for the decision, one for each candidate; times in ms. For the ledger."""
    lines = [
        f"{decision.num_context_tokens} tokens, {decision.num_workers} workers,"
        f" prefill {decision.prefill_place} ({decision.place_reason})"
    ]
    for each in decision.candidates:
        terms = " + ".join(f"{part.name} {part.cost_s * 1e3:.2f}" for part in each.parts)
        notes = "; ".join(filter(None, (each.why, *each.remarks, *each.excluded)))
        lines.append(
            f"{'*' if each.chosen else ' '} {each.task} {each.worker_id}:"
            f" {each.cost_s * 1e3:.2f} ms = {terms}; cached {each.cached_tokens} tokens,"
            f" free {each.free_blocks} blocks" + (f"; {notes}" if notes else "")
        )
    return "\n".join(lines)


def _tasks(kept: KeptDecision, limits: PolicyLimits) -> tuple[Task, ...]:
    decision, demand = kept.considered.decision, kept.considered.demand
    if isinstance(decision, Colocated):
        weighed = decision.where in (Where.SHORT, Where.CACHED)
        return (Task.LOCAL, Task.PREFILL) if weighed else (Task.LOCAL,)
    always_local = limits.colocated or limits.local.prefill_place is PrefillPlace.LOCAL
    if always_local and demand.redeem_at is None:
        return (Task.LOCAL,)
    return (Task.PREFILL, Task.DECODE) if demand.needs_decode else (Task.PREFILL,)


def _ranked(task: Task, look: Look, kept: KeptDecision) -> list[_Row]:
    """All candidates for a task: the chosen one, then by cost, then who was excluded."""
    considered = kept.considered
    chosen = _chosen(task, considered.decision) if kept.attempt else None
    costs = _costs(task, look, considered.decision)
    total_s: Column = np.sum([column for _, column in costs], axis=0)
    rows = []
    for row, is_prefill in enumerate(look.is_prefill.tolist()):
        if is_prefill == (task is Task.PREFILL):
            rows.append(
                _Row(
                    row,
                    is_chosen=look.fleet.views[row].ref == chosen,
                    excluded=_excluded(row, task, look, considered),
                    cost_s=float(total_s[row]),
                    parts=tuple(CostPart(name, float(column[row])) for name, column in costs),
                )
            )
    return sorted(rows, key=lambda each: (not each.is_chosen, bool(each.excluded), each.cost_s))


def _candidate(each: _Row, task: Task, look: Look, why: str) -> Candidate:
    view, demand = look.fleet.views[each.row], look.demand
    why = why if each.is_chosen else ""
    remarks = (
        (view.ref.worker_id in demand.avoid, "failed on it before"),
        (view.ref.worker_id in demand.prefer and why != _SESSION, "its session's"),
    )
    return Candidate(
        worker_id=view.ref.worker_id,
        task=task.value,
        chosen=each.is_chosen,
        why=why,
        excluded=each.excluded,
        remarks=tuple(words for is_so, words in remarks if is_so),
        parts=each.parts,
        cached_tokens=int(look.cached[each.row]),
        tokens_ahead=view.uncomputed_tokens,
        num_legs=view.num_legs,
        free_blocks=view.free_blocks,
    )


def _chosen(task: Task, decision: Decision) -> WorkerRef | None:
    match decision, task:
        case Colocated(worker), Task.LOCAL:
            return worker
        case Placement(prefill, _), Task.PREFILL:
            return prefill
        case Placement(_, decode), Task.DECODE:
            return decode
        case _:
            return None


def _costs(task: Task, look: Look, decision: Decision) -> list[tuple[str, Column]]:
    """What the policy adds up for a task, named; each row's. Predicted by whatever policy."""
    demand, columns, num_tokens = look.demand, look.columns, look.demand.num_context_tokens
    prefill = prefill_parts(columns, num_tokens, look.cached)
    if task is Task.PREFILL:
        return _named(prefill)
    is_local = task is Task.LOCAL
    if (
        is_local
        and isinstance(decision, Colocated)
        and decision.where in (Where.SHORT, Where.CACHED)
    ):
        held_up_s = prefill.compute_s * columns.num_legs
        return [*_named(prefill)[:2], ("held_up", held_up_s)]
    shipped_s = 0.0
    if isinstance(decision, Placement):
        shipped_s = float(columns.exposed_per_token_s[look.fleet.row_of[decision.prefill]])
    total = demand.expected_total_tokens or demand.max_total_tokens
    decode = _named(decode_parts(columns, num_tokens, total, look.cached, shipped_s))
    return [*_named(prefill)[:2], *decode] if is_local else decode


def _named(parts: PrefillParts | DecodeParts) -> list[tuple[str, Column]]:
    return [
        (name.removesuffix("_s"), each) for name, each in zip(parts._fields, parts, strict=True)
    ]


def _excluded(row: int, task: Task, look: Look, considered: Considered) -> tuple[str, ...]:
    """With what lies between workers: pairs that are barred, KV of another answer."""
    ref, decision = look.fleet.views[row].ref, considered.decision
    if isinstance(decision, Colocated) and decision.where is Where.SHARED:
        return () if ref == decision.worker else ("has not the KV of the other answer",)
    found = exclusions(row, task, look.demand, look.fleet, look.limits)
    if considered.barred and task is not Task.LOCAL and look.demand.needs_decode:
        found += _barred(ref, task, look, considered)
    return found


def _barred(ref: WorkerRef, task: Task, look: Look, considered: Considered) -> tuple[str, ...]:
    """A decode worker, from the chosen prefill worker; a prefill worker, from all with room."""
    decision, barred = considered.decision, considered.barred
    if task is Task.DECODE and isinstance(decision, Placement):
        prefill = decision.prefill.worker_id
        is_barred = (prefill, ref.worker_id) in barred
        return (f"barred: KV from {prefill} did not come through lately",) if is_barred else ()
    mask = look.usable & (look.is_prefill != (task is Task.PREFILL))
    mask = mask & (look.decode_has_room() if task is Task.PREFILL else look.prefill_has_room())
    others = look.fleet.ids(np.flatnonzero(mask))
    pairs = [(ref.worker_id, o) if task is Task.PREFILL else (o, ref.worker_id) for o in others]
    if pairs and all(pair in barred for pair in pairs):
        other = Task.DECODE if task is Task.PREFILL else Task.PREFILL
        return (f"barred: KV did not come through lately, with any {other} worker with room",)
    return ()


def _why(task: Task, look: Look, decision: Decision, ranked: list[_Row]) -> str:
    """The rule by which the chosen one (the first) came before the others with room."""
    demand, fleet = look.demand, look.fleet
    best, *others = [each for each in ranked if each.is_chosen or not each.excluded]
    if task is Task.PREFILL and demand.redeem_at is not None:
        return "holds its KV"
    if isinstance(decision, Colocated) and decision.where is Where.SHARED:
        return "has the KV of the other answer"
    if not others:
        return "the only one with room"
    ids = {each.row: fleet.views[each.row].ref.worker_id for each in ranked}
    if ids[best.row] in demand.avoid:
        return "all with room failed on it before"
    others = [each for each in others if ids[each.row] not in demand.avoid]
    if not others:
        return "the only one with room that it did not fail on"
    if ids[best.row] in demand.prefer:
        return _SESSION
    if look.limits.policy is not RoutePolicy.COST:
        return f"{_RULES[look.limits.policy]}, of {len(others) + 1} with room"
    if any(each.cost_s <= best.cost_s for each in others):
        return f"costs least, has least to do, of {len(others) + 1} with room"
    return f"costs least of {len(others) + 1} with room"
