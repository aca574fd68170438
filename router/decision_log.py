"""The latest routing decisions, for ``pdserve explain``: what each was made from, bounded.

Keeping one is a tuple and an append: views of workers are values that never change, so that all
costs can be worked out again (explanation.py), and the decisions of a request be found together,
when somebody asks. Bounded by decisions and, for large fleets, by workers looked at. Not covered:
requests refused before they were queued, and anything beyond the life of the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pdserve.errors import UnknownDecision
from pdserve.types import RequestId, WorkerId
from router.fleet import Column, WorkerView
from router.placement import Decision, Demand
from router.recent_requests import newest_called

MAX_VIEWS = 65_536  # workers of all decisions kept together


class Considered(NamedTuple):
    """A decision and what, beside the workers, it was made from."""

    decision: Decision
    demand: Demand
    cached: Column | None
    barred: Collection[tuple[WorkerId, WorkerId]]


class Asker(NamedTuple):
    """The request a decision is for. ``arrival`` tells requests of one id apart."""

    request_id: RequestId
    arrival: int
    arrived_s: float
    salted: bool


class KeptDecision(NamedTuple):
    asker: Asker
    attempt: int  # 0: it was not sent
    at_s: float
    considered: Considered
    views: Sequence[WorkerView]  # a fleet's own list, which it leaves as it is


class _Failure(NamedTuple):
    arrival: int
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """What is kept of one request; ``endings`` by attempt, of those that failed."""

    asker: Asker
    decisions: tuple[KeptDecision, ...]
    endings: dict[int, str]


class DecisionLog:
    def __init__(self, max_decisions: int, max_views: int = MAX_VIEWS) -> None:
        """``max_decisions``: 0 keeps nothing."""
        self._max_decisions = max_decisions
        self._max_views = max_views
        self._decisions: deque[KeptDecision] = deque()
        self._failures: deque[_Failure] = deque(maxlen=max_decisions)
        self._num_views = 0

    def __len__(self) -> int:
        return len(self._decisions)

    def keep(self, kept: KeptDecision) -> None:
        """As the newest."""
        self._decisions.append(kept)
        self._num_views += len(kept.views)
        while len(self._decisions) > self._max_decisions or (
            self._num_views > self._max_views and len(self._decisions) > 1
        ):
            self._num_views -= len(self._decisions.popleft().views)

    def failed(self, arrival: int, attempt: int, cause: str) -> None:
        """What ended an attempt; 0: what ended the request unsent."""
        self._failures.append(_Failure(arrival, attempt, cause))

    def find(self, wanted: str) -> KeptRequest | None:
        """The newest request that is called so, or "last"; see RecentRequests."""
        request_ids = [kept.asker.request_id for kept in self._decisions]
        request_id = newest_called(request_ids, wanted)
        if request_id is None:
            return None
        newest = self._decisions[-1 - request_ids[::-1].index(request_id)]
        return self.of(newest.asker)

    def of(self, asker: Asker) -> KeptRequest:
        return KeptRequest(
            asker,
            tuple(kept for kept in self._decisions if kept.asker.arrival == asker.arrival),
            {each.attempt: each.cause for each in self._failures if each.arrival == asker.arrival},
        )

    def unknown(self, wanted: str) -> UnknownDecision:
        return UnknownDecision(
            f"no routing decision of {wanted!r} among the {len(self._decisions)} latest "
            f"(at most {self._max_decisions} are kept)"
        )
