"""What the router has asked of one worker and not had back: blocks, tokens, answers owed.

A booking is made with its Submit and counts against the view of the worker until a status echoes
its number (the worker's own figures then hold it). It is gone with Ended, or with an answer that
admits nothing. Pure bookkeeping: no clock but the stamps passed in, no sessions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pdserve.types import Leg, RequestId


class LegKey(NamedTuple):
    request_id: RequestId
    epoch: int
    leg: Leg


@dataclass(frozen=True, slots=True)
class Booking:
    key: LegKey
    submit_seq: int
    submitted_s: float
    num_blocks: int
    num_tokens: int  # prompt tokens to compute


class Bookings:
    """All bookings on one session, in order of submission."""

    def __init__(self) -> None:
        self._by_key: dict[LegKey, Booking] = {}
        self._unanswered: dict[LegKey, float] = {}  # submitted_s, oldest first
        self._num_by_request: Counter[RequestId] = Counter()
        self._seen_seq = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def holds(self, request_id: RequestId) -> bool:
        """Whether a leg of this request still holds something there."""
        return request_id in self._num_by_request

    def add(self, booking: Booking) -> None:
        assert booking.key not in self._by_key, f"{booking.key} is booked already"
        self._by_key[booking.key] = booking
        self._unanswered[booking.key] = booking.submitted_s
        self._num_by_request[booking.key.request_id] += 1

    def admitted(self, key: LegKey) -> None:
        self._unanswered.pop(key, None)

    def ended(self, key: LegKey) -> None:
        """The leg holds nothing there (Ended, or it never was admitted)."""
        self._unanswered.pop(key, None)
        if self._by_key.pop(key, None) is None:
            return
        self._num_by_request[key.request_id] -= 1
        if self._num_by_request[key.request_id] == 0:
            del self._num_by_request[key.request_id]

    def seen(self, last_submit_seq: int) -> None:
        """A status counts every Submit up to this one."""
        self._seen_seq = max(self._seen_seq, last_submit_seq)

    def clear(self) -> None:
        self._by_key.clear()
        self._unanswered.clear()
        self._num_by_request.clear()

    @property
    def oldest_unanswered_s(self) -> float | None:
        """When the oldest Submit without answer was sent."""
        return next(iter(self._unanswered.values()), None)

    def unseen(self) -> Iterator[Booking]:
        """Bookings that the last status does not count yet, newest first."""
        for booking in reversed(self._by_key.values()):
            if booking.submit_seq <= self._seen_seq:
                return
            yield booking
