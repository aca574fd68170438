"""Which workers a request goes to: a pure function of what the router knows of them.

By predicted cost (costs.py), or, to compare with, by load alone, in turn, or the better of two
drawn (Mitzenmacher's power of two choices). Whatever the order, a worker must have room, those a
request failed on come last, and a session's last workers first. No clock, no waiting, no I/O, so
that a simulator can call it. It does not know sessions or requests, only ``Fleet`` and ``Demand``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdserve.types import WorkerId
from router.costs import ahead_s, computable, decode_parts, prefill_parts
from router.few_workers import MAX_WORKERS, place_among_few
from router.fleet import Column, Fleet, Mask, Rows, WorkerRef, WorkerView
from router.local_prefill import PrefillPlace, Where, local_reason
from router.placement import (
    Colocated,
    Decision,
    Demand,
    Placement,
    PolicyLimits,
    Unplaced,
    Waiting,
)
from router.route_policy import RoutePolicy

__all__ = [
    "Colocated", "Decision", "Demand", "Fleet", "Placement", "PolicyLimits", "RoutePolicy",
    "Unplaced", "Waiting", "WorkerRef", "WorkerView", "place", "place_among_many",
]  # fmt: skip


class LocalOffer(NamedTuple):
    """The decode worker that could compute a prompt soonest, against the best prefill worker."""

    worker: WorkerRef
    num_left: int  # tokens that are not cached there
    local_s: float
    remote_s: float


NO_PAIRS: frozenset[tuple[WorkerId, WorkerId]] = frozenset()
NOT_A_WORKER = WorkerRef(WorkerId(""), "", 0)


def place(
    demand: Demand,
    fleet: Fleet,
    limits: PolicyLimits,
    barred: Collection[tuple[WorkerId, WorkerId]] = NO_PAIRS,
    cached: Column | None = None,
) -> Decision:
    """Choose workers for one request.

    ``barred`` holds (prefill, decode) pairs that lately could not move KV; ``cached`` how many
    tokens of the context each worker of the fleet has in its prefix cache (None: nobody any).
    """
    if cached is None:
        cached = np.zeros(len(fleet))
    if len(fleet) <= MAX_WORKERS and not barred:
        placement = place_among_few(demand, fleet, limits, cached)
        if placement is not None:
            return placement
    return place_among_many(demand, fleet, limits, barred, cached)


def place_among_many(
    demand: Demand,
    fleet: Fleet,
    limits: PolicyLimits,
    barred: Collection[tuple[WorkerId, WorkerId]],
    cached: Column,
) -> Decision:
    """``place`` in full: every kind of demand, all workers at once."""
    look = Look(demand, fleet, limits, cached)
    if demand.waits:
        return Unplaced(Waiting.OTHER_ANSWER)
    if (shared := _beside_the_other(look)) is not None:
        return shared
    if limits.colocated:
        return _place_colocated(look)
    if demand.redeem_at is None and (local := _place_local(look)) is not None:
        return local
    return _place_apart(look, barred)


class Look:
    """One request against one fleet: who could take it, and in what order."""

    def __init__(self, demand: Demand, fleet: Fleet, limits: PolicyLimits, cached: Column) -> None:
        columns = fleet.columns
        self.demand, self.fleet, self.limits, self.cached = demand, fleet, limits, cached
        self.columns = columns
        self.is_prefill: Mask = columns.is_prefill > 0
        self.usable: Mask = (columns.is_open > 0) & (columns.step_age_s <= limits.hung_after_s)
        # A prefill worker too must have blocks for the longest context: after a failure late in
        # the request everything generated so far is part of its prompt.
        total = demand.max_total_tokens
        self.fits: Mask = (total <= columns.max_len) & (
            total <= columns.total_blocks * columns.block_size
        )

    def missing(self, prefills: Mask, decodes: Mask) -> Waiting | None:
        needs_decode = self.demand.needs_decode
        if not prefills.any():
            return Waiting.NO_PREFILL_WORKER
        if needs_decode and not decodes.any():
            return Waiting.NO_DECODE_WORKER
        if not (prefills & self.fits).any() or (needs_decode and not (decodes & self.fits).any()):
            return Waiting.TOO_LARGE
        return None

    def prefill_has_room(self) -> Mask:
        """Within the dispatch window, and blocks for the whole context are free.

        The window is a number of chunks, or a time if that is more: a worker that computes two
        chunks sooner than word of it comes here would wait for every prompt.
        """
        columns, limits = self.columns, self.limits
        few = columns.uncomputed_tokens < limits.dispatch_window_chunks * columns.chunk_tokens
        brief = ahead_s(columns) < limits.dispatch_window_s
        return self._has_blocks(self.demand.num_context_tokens) & (few | brief)

    def decode_has_room(self) -> Mask:
        """A place among its legs, and blocks for the context and one token more are free."""
        columns = self.columns
        return self._has_blocks(self.demand.num_context_tokens + 1) & (
            columns.num_legs < columns.max_legs
        )

    def _has_blocks(self, num_tokens: int) -> Mask:
        columns = self.columns
        has_blocks: Mask = (
            (columns.is_blocked == 0)
            & self.fits
            & (num_tokens <= columns.free_blocks * columns.block_size)
        )
        return has_blocks

    def prefill_order(self, mask: Mask) -> Column:
        """What is least is best; of all rows, whatever ``mask`` says."""
        if self.limits.policy is RoutePolicy.COST:
            return prefill_parts(self.columns, self.demand.num_context_tokens, self.cached).total_s
        return self._turn_or(self.columns.uncomputed_tokens, mask)

    def decode_order(self, mask: Mask, shipped_s: float) -> Column:
        if self.limits.policy is RoutePolicy.COST:
            demand = self.demand
            expected = demand.expected_total_tokens or demand.max_total_tokens
            return decode_parts(
                self.columns, demand.num_context_tokens, expected, self.cached, shipped_s
            ).total_s
        return self._turn_or(-self.columns.free_blocks, mask)

    def _turn_or(self, load: Column, mask: Mask) -> Column:
        rows = np.flatnonzero(mask)
        if self.limits.policy is RoutePolicy.ROUND_ROBIN:
            order = np.zeros(len(load))
            order[rows] = (np.arange(len(rows)) - self.demand.turn) % len(rows)
            return order
        if self.limits.policy is RoutePolicy.POWER_OF_TWO:
            drawn = np.random.default_rng(self.demand.turn).permutation(rows)[:2]
            order = load + float(load.max() - load.min() + 1.0)
            order[drawn] = load[drawn]
            return order
        return load

    def best(self, mask: Mask, order: Column, num: int = 0) -> list[WorkerRef]:
        """Best first, of equals the one with less to do; ``num`` of them, or all."""
        rows: Rows = np.flatnonzero(mask)
        demand, views = self.demand, self.fleet.views
        if num == 1 and not demand.avoid and not demand.prefer:
            values = order[rows]
            rows = rows[values == values.min()]
        columns = self.columns
        ties = [-columns.free_blocks[rows], columns.uncomputed_tokens[rows]]
        keys: list[NDArray[np.generic]] = [*ties, order[rows]]
        if demand.prefer:
            keys.append(~self.fleet.named(demand.prefer)[rows])
        if demand.avoid:
            keys.append(self.fleet.named(demand.avoid)[rows])
        ranked = rows[np.lexsort(keys)]
        return [views[row].ref for row in (ranked[:num] if num else ranked).tolist()]


def _place_apart(look: Look, barred: Collection[tuple[WorkerId, WorkerId]]) -> Placement | Unplaced:
    """A prefill worker and a decode worker."""
    demand = look.demand
    prefills, decodes = look.usable & look.is_prefill, look.usable & ~look.is_prefill
    if demand.redeem_at is not None:
        prefills = np.zeros(len(look.fleet), dtype=np.bool_)
        if (row := look.fleet.row_of.get(demand.redeem_at)) is not None:
            prefills[row] = True
    missing = look.missing(prefills, decodes)
    if missing is not None:
        return Unplaced(missing)
    if demand.redeem_at is None:
        prefills = prefills & look.prefill_has_room()
        if not prefills.any():
            return Unplaced(Waiting.PREFILL_BUSY)
    if not demand.needs_decode:
        return Placement(look.best(prefills, look.prefill_order(prefills), 1)[0], None)
    decodes = decodes & look.decode_has_room()
    if not decodes.any():
        return Unplaced(Waiting.DECODE_FULL)
    return _pair(look, prefills, decodes, barred)


def _beside_the_other(look: Look) -> Colocated | None:
    """Where another answer to the prompt has brought its KV, if there is room for this one too."""
    demand, row = look.demand, look.fleet.row_of.get(look.demand.share_at or NOT_A_WORKER)
    if row is None or look.fleet.views[row].ref.worker_id in demand.avoid:
        return None
    view = look.fleet.views[row]
    shared = min(demand.num_shared_tokens, demand.num_context_tokens - 1)
    shared -= shared % view.block_size  # whole blocks, and not the token that is sampled from
    own_tokens = demand.num_context_tokens + 1 - shared
    fits = look.usable[row] and look.fits[row] and view.num_legs < view.limits.max_running
    if fits and not view.blocked and own_tokens <= view.free_blocks * view.block_size:
        return Colocated(view.ref, shared, Where.SHARED)
    return None


def _pair(
    look: Look,
    prefills: Mask,
    decodes: Mask,
    barred: Collection[tuple[WorkerId, WorkerId]],
) -> Placement | Unplaced:
    """The best prefill worker that may send to a decode worker with room, and the best of those."""
    order = look.prefill_order(prefills)
    num = 0 if barred else 1
    by_prefill: dict[float, list[WorkerRef]] = {}
    for prefill in look.best(prefills, order, num):
        shipped_s = float(look.columns.exposed_per_token_s[look.fleet.row_of[prefill]])
        if shipped_s not in by_prefill:
            by_prefill[shipped_s] = look.best(decodes, look.decode_order(decodes, shipped_s), num)
        for decode in by_prefill[shipped_s]:
            if (prefill.worker_id, decode.worker_id) not in barred:
                return Placement(prefill, decode)
    return Unplaced(Waiting.BARRED)


def _place_local(look: Look) -> Colocated | Unplaced | None:
    """At a decode worker although there are, or should be, prefill workers; None: not there."""
    limits, prefills = look.limits.local, look.usable & look.is_prefill
    reason: Where | None = None
    if limits.prefill_place is PrefillPlace.LOCAL:
        reason = Where.BY_OPTION
    elif not prefills.any() and not limits.is_strict:
        reason = Where.NO_PREFILL_WORKER
    if reason is not None:
        decision = _place_colocated(look)
        return replace(decision, where=reason) if isinstance(decision, Colocated) else decision
    if limits.prefill_place is not PrefillPlace.ADAPTIVE:
        return None
    offer = local_offer(look)
    if offer is None:
        return None
    num_tokens = look.demand.num_context_tokens
    reason = local_reason(num_tokens, offer.num_left, offer.local_s, offer.remote_s, limits)
    return None if reason is None else Colocated(offer.worker, where=reason)


def local_offer(look: Look) -> LocalOffer | None:
    """What `adaptive` weighs; None: nobody is there for one of the two."""
    prefills = look.usable & look.is_prefill & look.fits
    decodes = look.usable & ~look.is_prefill & look.decode_has_room() & look.prefill_has_room()
    if not prefills.any() or not decodes.any():
        return None
    num_tokens, columns = look.demand.num_context_tokens, look.columns
    parts = prefill_parts(columns, num_tokens, look.cached)
    local_s = parts.queue_s + parts.compute_s * (1 + columns.num_legs)
    best = look.best(decodes, local_s, 1)[0]
    row = look.fleet.row_of[best]
    start = computable(look.cached, num_tokens, columns.block_size)[row]
    remote_s = float(parts.total_s[prefills].min())
    return LocalOffer(best, num_tokens - int(start), float(local_s[row]), remote_s)


def _place_colocated(look: Look) -> Colocated | Unplaced:
    workers = look.usable & ~look.is_prefill
    if not workers.any():
        return Unplaced(Waiting.NO_DECODE_WORKER)
    if not (workers & look.fits).any():
        return Unplaced(Waiting.TOO_LARGE)
    workers &= look.decode_has_room()
    if not workers.any():
        return Unplaced(Waiting.DECODE_FULL)
    workers &= look.prefill_has_room()
    if not workers.any():
        return Unplaced(Waiting.PREFILL_BUSY)
    if look.limits.policy is RoutePolicy.COST:  # nothing has to come over
        parts = prefill_parts(look.columns, look.demand.num_context_tokens, look.cached)
        order = parts.queue_s + parts.compute_s + look.decode_order(workers, 0.0)
    else:
        order = look.prefill_order(workers)
    return Colocated(look.best(workers, order, 1)[0])
