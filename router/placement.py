"""What a request needs of the workers, the limits a choice keeps to, and what it comes to.

The words between those who ask for workers (dispatcher.py) and those who choose them (policy.py,
few_workers.py). Frozen values; nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pdserve.types import WorkerId
from router.fleet import WorkerRef
from router.local_prefill import LocalLimits, Where
from router.route_policy import RoutePolicy

NOBODY: frozenset[WorkerId] = frozenset()


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request needs next.

    ``avoid`` names workers it failed on: taken only when no other has room. ``redeem_at`` is the
    prefill worker that still holds its KV. ``prefer`` are the workers its session had last.
    ``waits``: another answer to the same prompt is being computed; ``share_at`` is then the decode
    worker that has the prompt's KV, of which ``num_shared_tokens`` at most can be shared. ``turn``
    differs from request to request: what takes turns, and what draws, goes by it.
    ``expected_total_tokens``: prompt and answer as they usually are, at most ``max_total_tokens``;
    0: that.
    """

    num_context_tokens: int
    max_total_tokens: int
    needs_decode: bool = True
    avoid: frozenset[WorkerId] = NOBODY
    redeem_at: WorkerRef | None = None
    prefer: frozenset[WorkerId] = NOBODY
    waits: bool = False
    share_at: WorkerRef | None = None
    num_shared_tokens: int = 0
    turn: int = 0
    expected_total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    dispatch_window_chunks: float = 2.0
    dispatch_window_s: float = 0.0
    hung_after_s: float = 5.0  # step age from which a worker gets nothing new
    colocated: bool = False
    policy: RoutePolicy = RoutePolicy.COST
    local: LocalLimits = LocalLimits()


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
    where: Where = field(default=Where.COLOCATED, compare=False)  # for people


class Waiting(StrEnum):
    """Why a request cannot go now."""

    NO_PREFILL_WORKER = "no prefill worker"
    NO_DECODE_WORKER = "no decode worker"
    TOO_LARGE = "larger than every worker"
    PREFILL_BUSY = "prefill workers have enough to do"
    DECODE_FULL = "decode workers are full"
    TOO_LATE = "it cannot end before its deadline"
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
