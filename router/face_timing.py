"""The face's part of one request's ledger: its arrival, and the first piece that was sent.

The router's own ledger (ledger.py) runs from the queue to the tokens; the time before and after
that is the face's. What the face adds is cut so that all parts together are the span from the
arrival to the first piece on the client's connection, on one clock.
"""

from __future__ import annotations

from dataclasses import replace

from pdserve.clock import Clock
from pdserve.request_start import Arrival
from pdserve.request_timing import RequestTiming


class FaceTiming:
    """``started_s``: when the service got the request, ``arrival.receive_s`` after it came."""

    def __init__(self, clock: Clock, started_s: float, arrival: Arrival) -> None:
        self._clock = clock
        self._arrival = arrival
        self._arrived_s = started_s - arrival.receive_s
        self._sent_s: float | None = None

    @property
    def arrived_s(self) -> float:
        return self._arrived_s

    def first_piece_sent(self) -> bool:
        """The client's connection has the first piece. False: it had one already."""
        if self._sent_s is not None:
            return False
        self._sent_s = self._clock.now()
        return True

    def completed(
        self,
        timing: RequestTiming,
        num_prompt_tokens: int | None = None,
        num_generated_tokens: int | None = None,
    ) -> RequestTiming:
        """The router's ledger with the face's parts in it, and its counts if they are others."""
        receive_s = self._arrival.receive_s
        total_s, send_s = timing.total_s + receive_s, 0.0
        if self._sent_s is not None:
            first_s = receive_s + timing.ttft_s  # the router's own: it has neither end's part
            send_s = max(0.0, self._sent_s - self._arrived_s - first_s)
            total_s = max(total_s, first_s + send_s)
        return replace(
            timing,
            before_face_s=self._arrival.before_face_s,
            receive_s=receive_s,
            first_token_send_s=send_s,
            total_s=total_s,
            num_prompt_tokens=_or(num_prompt_tokens, timing.num_prompt_tokens),
            num_generated_tokens=_or(num_generated_tokens, timing.num_generated_tokens),
        )


def _or(count: int | None, default: int) -> int:
    return default if count is None else count
