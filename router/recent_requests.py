"""The ledgers of the latest requests, for `pdserve trace`: bounded, in memory, newest last.

Requests are found by what a person has at hand: the service's own id, the id of an HTTP answer
(``chatcmpl-...``), or the X-Request-ID that a client gave. Not covered: requests that were refused
before they were queued, and keeping anything beyond the life of the process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Reversible
from typing import TypeVar

from pdserve.errors import UnknownRequest
from pdserve.public import RequestRecord

LATEST = "last"
_ANSWER_PREFIXES = ("cmpl-", "chatcmpl-")
_IdT = TypeVar("_IdT", bound=str)


class RecentRequests:
    def __init__(self, max_requests: int) -> None:
        """``max_requests``: 0 keeps nothing."""
        self._max_requests = max_requests
        self._records: OrderedDict[str, RequestRecord] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: RequestRecord) -> None:
        """As the newest; takes the place of one with the same id."""
        self._records.pop(record.request_id, None)
        self._records[record.request_id] = record
        while len(self._records) > self._max_requests:
            self._records.popitem(last=False)

    def find(self, wanted: str) -> RequestRecord:
        """The newest request that is called so; ``LATEST``: the newest of all.

        Raises:
            UnknownRequest: none of those kept is.
        """
        request_id = newest_called(self._records, wanted)
        if request_id is not None:
            return self._records[request_id]
        raise UnknownRequest(
            f"no request {wanted!r} among the {len(self._records)} latest that ended "
            f"(at most {self._max_requests} are kept)"
        )


def newest_called(request_ids: Reversible[_IdT], wanted: str) -> _IdT | None:
    """The last of these ids that ``wanted`` may mean."""
    names = {wanted, *(wanted.removeprefix(prefix) for prefix in _ANSWER_PREFIXES)}
    for request_id in reversed(request_ids):
        # Ids given by clients and prompts of one request have an ending of their own.
        if wanted == LATEST or any(
            request_id == name or request_id.startswith(f"{name}-") for name in names
        ):
            return request_id
    return None
