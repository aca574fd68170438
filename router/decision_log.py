"""The latest routing decisions, for ``pdserve explain``: what each was made from, bounded.

Keeping one takes a few references: views of workers are values that never change, so that all
costs can be worked out again (explanation.py) when somebody asks. Bounded by requests and, for
large fleets, by workers looked at. Not covered: requests refused before they were queued, and
anything beyond the life of the process.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from pdserve.errors import UnknownDecision
from pdserve.types import RequestId, WorkerId
from router.fleet import Column, Fleet, WorkerView
from router.placement import Decision, Demand
from router.recent_requests import newest_called

MAX_VIEWS = 65_536  # workers of all decisions kept together
MAX_OF_REQUEST = 16  # the latest decisions; answers of Busy have no bound of their own


class Considered(NamedTuple):
    """A decision and what, beside the workers, it was made from."""

    decision: Decision
    demand: Demand
    cached: Column | None
    barred: Collection[tuple[WorkerId, WorkerId]]


class KeptDecision(NamedTuple):
    attempt: int  # 0: it was not sent
    at_s: float
    considered: Considered
    views: tuple[WorkerView, ...]


@dataclass(slots=True)
class KeptRequest:
    request_id: RequestId
    arrival: int  # tells requests of one id apart
    arrived_s: float
    salted: bool
    decisions: deque[KeptDecision] = field(default_factory=lambda: deque(maxlen=MAX_OF_REQUEST))
    endings: dict[int, str] = field(default_factory=dict)  # by attempt, of those that failed


class DecisionLog:
    def __init__(self, max_requests: int, max_views: int = MAX_VIEWS) -> None:
        """``max_requests``: 0 keeps nothing."""
        self._max_requests = max_requests
        self._max_views = max_views
        self._requests: OrderedDict[RequestId, KeptRequest] = OrderedDict()
        self._num_views = 0

    def __len__(self) -> int:
        return len(self._requests)

    def keep(
        self,
        blank: KeptRequest,
        attempt: int,
        at_s: float,
        considered: Considered,
        fleet: Fleet,
    ) -> None:
        """As the newest. ``blank`` is taken for a request that nothing is kept of."""
        if self._max_requests == 0:
            return
        kept = self._requests.get(blank.request_id)
        if kept is None or kept.arrival != blank.arrival:
            self._forget(blank.request_id)
            kept = self._requests[blank.request_id] = blank
        if len(kept.decisions) == MAX_OF_REQUEST:
            self._num_views -= len(kept.decisions[0].views)
        views = tuple(fleet.views)
        kept.decisions.append(KeptDecision(attempt, at_s, considered, views))
        self._num_views += len(views)
        while len(self._requests) > self._max_requests or (
            self._num_views > self._max_views and len(self._requests) > 1
        ):
            self._forget(next(iter(self._requests)))

    def failed(self, request_id: RequestId, attempt: int, cause: str) -> None:
        """What ended an attempt that was kept; 0: what ended the request unsent."""
        if (kept := self._requests.get(request_id)) is not None:
            kept.endings[attempt] = cause

    def find(self, wanted: str) -> KeptRequest | None:
        """The newest request that is called so, or "last"; see RecentRequests."""
        request_id = newest_called(self._requests, wanted)
        return None if request_id is None else self._requests[request_id]

    def unknown(self, wanted: str) -> UnknownDecision:
        return UnknownDecision(
            f"no routing decision of {wanted!r} among those of the {len(self._requests)} "
            f"latest requests (at most {self._max_requests} are kept)"
        )

    def _forget(self, request_id: RequestId) -> None:
        if (kept := self._requests.pop(request_id, None)) is not None:
            self._num_views -= sum(len(each.views) for each in kept.decisions)
