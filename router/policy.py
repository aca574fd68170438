"""Which workers a request goes to: a pure function of what the router knows of them.

Prefill goes where the fewest prompt tokens are left to compute, decode where the most blocks are
free. No clock, no waiting, no I/O, so that a simulator can call it. It does not know sessions or
requests, only ``WorkerView`` and ``Demand``. Not covered: prefix caches, costs of a link.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pdserve.types import Role, WorkerId, WorkerLimits, WorkerStatus

NO_PAIRS: frozenset[tuple[WorkerId, WorkerId]] = frozenset()


@dataclass(frozen=True, slots=True)
class WorkerRef:
    """One session of one worker. A worker that comes back has another one."""

    worker_id: WorkerId
    incarnation: str
    session: int  # counts sessions of this router


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What the router knows of one worker: its last status and what was sent since."""

    ref: WorkerRef
    role: Role
    limits: WorkerLimits
    block_size: int  # tokens
    status: WorkerStatus
    unseen_blocks: int = 0  # booked by Submits that the last status does not count yet
    unseen_tokens: int = 0  # prompt tokens of those Submits
    unseen_legs: int = 0
    blocked: bool = False  # answered Busy, no report since
    draining: bool = False

    @property
    def free_blocks(self) -> int:
        return self.status.free_blocks - self.status.reserved_blocks - self.unseen_blocks

    @property
    def uncomputed_tokens(self) -> int:
        return self.status.queued_tokens + self.unseen_tokens

    @property
    def num_legs(self) -> int:
        status = self.status
        return status.num_queued + status.num_running + status.num_parked + self.unseen_legs

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request needs next.

    ``avoid`` names workers it failed on: taken only when no other has room. ``redeem_at`` is the
    prefill worker that still holds its KV. ``waits``: another answer to the same prompt is being
    computed; ``share_at`` is then the decode worker that has the prompt's KV, of which
    ``num_shared_tokens`` at most can be shared.
    """

    num_context_tokens: int
    max_total_tokens: int
    needs_decode: bool = True
    avoid: frozenset[WorkerId] = frozenset()
    redeem_at: WorkerRef | None = None
    waits: bool = False
    share_at: WorkerRef | None = None
    num_shared_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    dispatch_window_chunks: float = 2.0
    hung_after_s: float = 5.0  # step age from which a worker gets nothing new
    colocated: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Prefill here, decode there; ``decode`` is None when one token is all that is wanted."""

    prefill: WorkerRef
    decode: WorkerRef | None


@dataclass(frozen=True, slots=True)
class Colocated:
    """All of it on a decode worker, which has the KV of ``num_shared_tokens`` already."""

    worker: WorkerRef
    num_shared_tokens: int = 0


class Waiting(StrEnum):
    """Why a request cannot go now."""

    NO_PREFILL_WORKER = "no prefill worker"
    NO_DECODE_WORKER = "no decode worker"
    TOO_LARGE = "larger than every worker"
    PREFILL_BUSY = "prefill workers have enough to do"
    DECODE_FULL = "decode workers are full"
    OTHER_ANSWER = "another answer to the same prompt comes first"
    BARRED = "the workers with room cannot reach each other"

    @property
    def holds_up_others(self) -> bool:
        """Whether those behind it in the queue wait too, so that they do not overtake it."""
        return self in (Waiting.PREFILL_BUSY, Waiting.DECODE_FULL)

    @property
    def is_starving(self) -> bool:
        """Whether no worker could take it even if all were idle."""
        return self in (Waiting.NO_PREFILL_WORKER, Waiting.NO_DECODE_WORKER, Waiting.TOO_LARGE)


@dataclass(frozen=True, slots=True)
class Unplaced:
    reason: Waiting


Decision = Placement | Colocated | Unplaced


def place(
    demand: Demand,
    workers: Sequence[WorkerView],
    limits: PolicyLimits,
    barred: Collection[tuple[WorkerId, WorkerId]] = NO_PAIRS,
) -> Decision:
    """Choose workers for one request.

    ``barred`` holds (prefill, decode) pairs that lately could not move KV.
    """
    if demand.waits:
        return Unplaced(Waiting.OTHER_ANSWER)
    if (shared := _beside_the_other(demand, workers, limits)) is not None:
        return shared
    if limits.colocated:
        return _place_colocated(demand, _usable(workers, Role.DECODE, limits), limits)
    prefills = _usable(workers, Role.PREFILL, limits)
    if demand.redeem_at is not None:
        prefills = [view for view in workers if view.ref == demand.redeem_at]
    decodes = _usable(workers, Role.DECODE, limits)
    missing = _missing(demand, prefills, decodes)
    if missing is not None:
        return Unplaced(missing)
    if demand.redeem_at is None:
        prefills = [view for view in prefills if prefill_has_room(view, demand, limits)]
        if not prefills:
            return Unplaced(Waiting.PREFILL_BUSY)
    prefills.sort(key=lambda view: (view.ref.worker_id in demand.avoid, view.uncomputed_tokens))
    if not demand.needs_decode:
        return Placement(prefills[0].ref, None)
    return _pair(demand, prefills, decodes, barred)


def prefill_has_room(view: WorkerView, demand: Demand, limits: PolicyLimits) -> bool:
    """Within the dispatch window, and blocks for the whole context are free."""
    window_tokens = limits.dispatch_window_chunks * view.limits.chunk_tokens
    return (
        not view.blocked
        and fits_empty(view, demand)
        and view.uncomputed_tokens < window_tokens
        and view.num_blocks(demand.num_context_tokens) <= view.free_blocks
    )


def decode_has_room(view: WorkerView, demand: Demand) -> bool:
    """A place among its legs, and blocks for the context and one token more are free."""
    return (
        not view.blocked
        and fits_empty(view, demand)
        and view.num_legs < view.limits.max_running
        and view.num_blocks(demand.num_context_tokens + 1) <= view.free_blocks
    )


def fits_empty(view: WorkerView, demand: Demand) -> bool:
    """Whether this worker could take the request if it had nothing else to do.

    A prefill worker too must have blocks for the longest context: after a failure late in the
    request everything generated so far is part of its prompt.
    """
    return (
        demand.max_total_tokens <= view.limits.max_model_len
        and view.num_blocks(demand.max_total_tokens) <= view.limits.total_blocks
    )


def _beside_the_other(
    demand: Demand, workers: Sequence[WorkerView], limits: PolicyLimits
) -> Colocated | None:
    """Where another answer to the prompt has brought its KV, if there is room for this one too."""
    for view in _usable(workers, Role.DECODE, limits):
        if view.ref != demand.share_at or view.ref.worker_id in demand.avoid:
            continue
        shared = min(demand.num_shared_tokens, demand.num_context_tokens - 1)
        shared -= shared % view.block_size  # whole blocks, and not the token that is sampled from
        own_blocks = view.num_blocks(demand.num_context_tokens + 1 - shared)
        fits = fits_empty(view, demand) and view.num_legs < view.limits.max_running
        if fits and not view.blocked and own_blocks <= view.free_blocks:
            return Colocated(view.ref, shared)
    return None


def _usable(workers: Iterable[WorkerView], role: Role, limits: PolicyLimits) -> list[WorkerView]:
    return [
        view
        for view in workers
        if view.role is role
        and not view.draining
        and not view.status.draining
        and view.status.step_age_s <= limits.hung_after_s
    ]


def _missing(
    demand: Demand, prefills: list[WorkerView], decodes: list[WorkerView]
) -> Waiting | None:
    if not prefills:
        return Waiting.NO_PREFILL_WORKER
    if demand.needs_decode and not decodes:
        return Waiting.NO_DECODE_WORKER
    pools = (prefills, decodes) if demand.needs_decode else (prefills,)
    if not all(any(fits_empty(view, demand) for view in pool) for pool in pools):
        return Waiting.TOO_LARGE
    return None


def _pair(
    demand: Demand,
    prefills: list[WorkerView],
    decodes: list[WorkerView],
    barred: Collection[tuple[WorkerId, WorkerId]],
) -> Placement | Unplaced:
    """The first prefill worker, in the order given, that may send to a decode worker with room."""
    decodes = [view for view in decodes if decode_has_room(view, demand)]
    if not decodes:
        return Unplaced(Waiting.DECODE_FULL)
    decodes.sort(key=lambda view: (view.ref.worker_id in demand.avoid, -view.free_blocks))
    for prefill in prefills:
        for decode in decodes:
            if (prefill.ref.worker_id, decode.ref.worker_id) not in barred:
                return Placement(prefill.ref, decode.ref)
    return Unplaced(Waiting.BARRED)


def _place_colocated(
    demand: Demand, workers: list[WorkerView], limits: PolicyLimits
) -> Colocated | Unplaced:
    if not workers:
        return Unplaced(Waiting.NO_DECODE_WORKER)
    if not any(fits_empty(view, demand) for view in workers):
        return Unplaced(Waiting.TOO_LARGE)
    workers = [view for view in workers if decode_has_room(view, demand)]
    if not workers:
        return Unplaced(Waiting.DECODE_FULL)
    workers = [view for view in workers if prefill_has_room(view, demand, limits)]
    if not workers:
        return Unplaced(Waiting.PREFILL_BUSY)
    return Colocated(
        min(
            workers,
            key=lambda view: (
                view.ref.worker_id in demand.avoid,
                view.uncomputed_tokens,
                -view.free_blocks,
            ),
        ).ref
    )
