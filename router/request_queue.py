"""The router's queue: bounded for arrivals, ordered as docs/protocol.md section 2 says.

Requests that were dispatched before come first, then lower priority, nearer deadline, earlier
arrival. It does not know workers.
"""

from __future__ import annotations

import bisect
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


QueuedT = TypeVar("QueuedT", bound=Queued)

_Key = tuple[bool, int, float, int]


class RequestQueue(Generic[QueuedT]):
    def __init__(self, max_len: int) -> None:
        self._max_len = max_len
        self._keys: list[_Key] = []
        self._items: dict[_Key, QueuedT] = {}
        self._num_prompt_tokens = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, item: QueuedT) -> bool:
        return order_key(item) in self._items

    def __iter__(self) -> Iterator[QueuedT]:
        """In order. The queue may change meanwhile: what was removed is left out."""
        for key in self._keys.copy():
            if (item := self._items.get(key)) is not None:
                yield item

    @property
    def num_prompt_tokens(self) -> int:
        """Of all requests in the queue."""
        return self._num_prompt_tokens

    @property
    def is_full(self) -> bool:
        return len(self._keys) >= self._max_len

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
        bisect.insort(self._keys, key)
        self._items[key] = item
        self._num_prompt_tokens += item.num_prompt_tokens

    def remove(self, item: QueuedT) -> None:
        key = order_key(item)
        del self._items[key]
        self._num_prompt_tokens -= item.num_prompt_tokens
        del self._keys[bisect.bisect_left(self._keys, key)]


def order_key(item: Queued) -> _Key:
    deadline_s = math.inf if item.deadline_s is None else item.deadline_s
    return (not item.was_dispatched, item.priority, deadline_s, item.arrival)
