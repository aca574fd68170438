"""How often a request is tried again, and which errors are no reason to (protocol section 2)."""

from __future__ import annotations

from pdserve.errors import (
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    PdserveError,
    RetriesExhausted,
)
from pdserve.messages import Failed
from pdserve.types import WorkerId

MAX_DEATHS = 2  # workers that died with the request in flight on them


class Retries:
    """Of one request. Busy does not come here."""

    def __init__(self, max_redispatches: int) -> None:
        self._max_redispatches = max_redispatches
        self._num_redispatches = 0
        self._num_deaths = 0
        self.avoid: frozenset[WorkerId] = frozenset()  # workers it failed on

    def count(self, worker_id: WorkerId, *, died: bool) -> None:
        """A leg failed there."""
        self.avoid |= {worker_id}
        self._num_deaths += died

    def check_deaths(self, cause: str) -> RetriesExhausted | None:
        """The error to end with if too many workers died with it: it may be what kills them."""
        if self._num_deaths < MAX_DEATHS:
            return None
        return RetriesExhausted(f"{MAX_DEATHS} workers died with it; last: {cause}")

    def spend(self, cause: str) -> RetriesExhausted | None:
        """Take one more attempt, or get the error to end with."""
        if self._num_redispatches >= self._max_redispatches:
            return RetriesExhausted(f"failed {self._num_redispatches + 1} times; last: {cause}")
        self._num_redispatches += 1
        return None


def own_fault(event: Failed) -> PdserveError | None:
    """The error of a leg that would fail in the same way on every worker; None for others."""
    if event.code == DeadlineExceeded.code:
        return DeadlineExceeded(event.detail)
    for cls in (InvalidRequest, ContextTooLong):
        if event.code == cls.code:
            field, _, problem = event.detail.partition(": ")
            return cls(field, problem)
    return None
