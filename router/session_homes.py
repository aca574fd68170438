"""Which workers a client's session had last; the policy prefers them (``Demand.prefer``).

Sessions are the client's names for what belongs together (pdserve/route_hints.py). Kept for as many
as there is room for; the one not heard of for longest is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict

from pdserve.types import WorkerId

MAX_SESSIONS = 65_536

_NOWHERE: frozenset[WorkerId] = frozenset()


class SessionHomes:
    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._homes: OrderedDict[tuple[str, str], frozenset[WorkerId]] = OrderedDict()

    def of(self, tenant: str, session: str) -> frozenset[WorkerId]:
        return self._homes.get((tenant, session), _NOWHERE) if session else _NOWHERE

    def went(self, tenant: str, session: str, workers: frozenset[WorkerId]) -> None:
        """A request of the session was sent there."""
        if not session:
            return
        self._homes[tenant, session] = workers
        self._homes.move_to_end((tenant, session))
        if len(self._homes) > self._max_sessions:
            self._homes.popitem(last=False)
