"""When a worker's next report to a router may leave.

A report costs both ends as much as many tokens, however little it tells. So what nobody waits for
goes with the next report, or an interval after the last one; what somebody waits for goes at once,
as long as that happens rarely. Only where reports would follow each other closer than the interval
for long (steps that take next to no time, many short requests) does it wait too, and many legs'
events share a message. Engines with steps above the interval give one report a step. Pure: times
are passed in.
"""

from __future__ import annotations

from pdserve.messages import Admitted, Ended, Tokens, WorkerEvent

BURST = 8.0  # reports that may leave at once after a quiet time


def may_wait(event: WorkerEvent) -> bool:
    """Whether nobody waits for it: tokens in the middle of an answer, and what only bookings are
    kept by, which the status of a report settles as well."""
    if isinstance(event, Tokens):
        is_last = bool(event.tokens) and event.tokens[-1].finish_reason is not None
        return event.timing is None and not is_last
    return isinstance(event, (Admitted, Ended))


class ReportPacing:
    """``interval_s`` between reports in the long run, ``BURST`` of them at once; 0: no waits."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._left_s: float | None = None  # the last one
        self._credit = BURST  # reports that may leave now

    def wait_s(self, now_s: float, *, urgent: bool) -> float:
        """How long the next report has to wait; 0 or less: not at all."""
        if self._left_s is None or self._interval_s <= 0:
            return 0.0
        missing = (1.0 - self._credit_at(now_s)) * self._interval_s
        return missing if urgent else max(missing, self._left_s + self._interval_s - now_s)

    def left(self, now_s: float) -> None:
        """A report leaves now."""
        self._credit = self._credit_at(now_s) - 1.0
        self._left_s = now_s

    def _credit_at(self, now_s: float) -> float:
        if self._left_s is None or self._interval_s <= 0:
            return BURST
        return min(BURST, self._credit + (now_s - self._left_s) / self._interval_s)
