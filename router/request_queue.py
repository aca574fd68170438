"""The router's queue: bounded for arrivals, ordered as docs/protocol.md section 2 says.

Requests that were dispatched before come first, then lower priority; among tenants the one that was
given least so far, in tokens; of one tenant nearer deadline, earlier arrival. A tenant that comes
(back) is counted as having been given as much as the least served of those who wait, so that nobody
saves up turns: the virtual token counter of Sheng et al., "Fairness in Serving Large Language
Models" (OSDI 2024). It does not know workers.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from pdserve.errors import Overloaded


class Queued(Protocol):
    """What the order is made of. None of it changes while the request is in the queue."""

    @property
    def was_dispatched(self) -> bool: ...

    @property
    def priority(self) -> int: ...

    @property
    def deadline_s(self) -> float | None: ...

    @property
    def arrival(self) -> int:
        """Unique, counts up."""

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def tenant(self) -> str: ...

    @property
    def service_tokens(self) -> float:
        """What it is expected to take, prompt and answer: what its tenant is charged."""


QueuedT = TypeVar("QueuedT", bound=Queued)

_Key = tuple[bool, int, float, int]

MAX_TENANTS = 4096  # whose counters are kept while they have nothing here


class RequestQueue(Generic[QueuedT]):
    def __init__(self, max_len: int) -> None:
        self._max_len = max_len
        self._keys: dict[str, list[_Key]] = {}  # by tenant, each in order
        self._served: dict[str, float] = {}  # tokens given to a tenant, or counted as given
        self._items: dict[_Key, QueuedT] = {}
        self._num_prompt_tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: QueuedT) -> bool:
        return order_key(item) in self._items

    def __iter__(self) -> Iterator[QueuedT]:
        """In order. The queue may change meanwhile: what was removed is left out."""
        waiting = {tenant: keys.copy() for tenant, keys in self._keys.items()}
        heap: list[tuple[bool, int, float, float, int, str, int]] = []

        def push(tenant: str, position: int, served: float) -> None:
            if position < len(waiting[tenant]):
                again, priority, deadline_s, arrival = waiting[tenant][position]
                entry = (again, priority, served, deadline_s, arrival, tenant, position)
                heapq.heappush(heap, entry)

        for tenant in waiting:
            push(tenant, 0, self._served[tenant])
        while heap:
            again, priority, served, deadline_s, arrival, tenant, position = heapq.heappop(heap)
            item = self._items.get((again, priority, deadline_s, arrival))
            if item is not None:
                served += item.service_tokens
                yield item
            push(tenant, position + 1, served)

    @property
    def num_prompt_tokens(self) -> int:
        """Of all requests in the queue."""
        return self._num_prompt_tokens

    @property
    def is_full(self) -> bool:
        return len(self._items) >= self._max_len

    def add(self, item: QueuedT, retry_after_s: float) -> None:
        """Queue an arrival.

        Raises:
            Overloaded: the queue is full; carries ``retry_after_s``.
        """
        if self.is_full:
            raise Overloaded(
                f"the queue is full ({self._max_len} requests wait)", retry_after_s=retry_after_s
            )
        self.put_back(item)

    def put_back(self, item: QueuedT) -> None:
        """Queue a request that was dispatched and must go again; never refused."""
        key = order_key(item)
        assert key not in self._items, f"arrival {item.arrival} is queued twice"
        if item.tenant not in self._keys:
            self._arrive(item.tenant)
        bisect.insort(self._keys[item.tenant], key)
        self._items[key] = item
        self._num_prompt_tokens += item.num_prompt_tokens

    def remove(self, item: QueuedT) -> None:
        key = order_key(item)
        del self._items[key]
        self._num_prompt_tokens -= item.num_prompt_tokens
        keys = self._keys[item.tenant]
        del keys[bisect.bisect_left(keys, key)]
        if not keys:
            del self._keys[item.tenant]

    def charge(self, item: QueuedT) -> None:
        """It goes to workers: its tenant has been given that much more. Once a request."""
        self._served[item.tenant] = self._served.get(item.tenant, 0.0) + item.service_tokens

    def _arrive(self, tenant: str) -> None:
        """A tenant that had nothing here."""
        least = min((self._served[other] for other in self._keys), default=0.0)
        if not self._keys and len(self._served) > MAX_TENANTS:
            self._served.clear()
        self._served[tenant] = max(self._served.get(tenant, 0.0), least)
        self._keys[tenant] = []


def order_key(item: Queued) -> _Key:
    deadline_s = math.inf if item.deadline_s is None else item.deadline_s
    return (not item.was_dispatched, item.priority, deadline_s, item.arrival)
