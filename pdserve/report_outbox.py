"""What a worker's next report will say: events in order, tokens of one sequence put together.

    Tokens(a, 7), Tokens(b, 3), Tokens(a, 8), Ended(a)  ->  Tokens(a, 7 8), Tokens(b, 3), Ended(a)

Where steps follow each other faster than reports leave (pdserve/report_pacing.py), a sequence has a
token of each step in one report. An event for each costs both ends more than the token itself, so a
token joins the last ``Tokens`` of its leg, as long as nothing else was said of the request since.
Only the order between different requests changes, which says nothing. ``timing`` stays with
the event that began with it. Knows neither pacing nor sessions.
"""

from __future__ import annotations

from pdserve.messages import FirstToken, Met, Tokens, WorkerEvent
from pdserve.types import DecodeTiming, RequestId, TokenEvent


class _Run:
    """A ``Tokens`` that may still grow."""

    __slots__ = ("epoch", "timing", "tokens")

    def __init__(self, tokens: tuple[TokenEvent, ...], timing: DecodeTiming | None) -> None:
        self.epoch = tokens[0].epoch
        self.tokens = list(tokens)
        self.timing = timing


class ReportOutbox:
    def __init__(self) -> None:
        self._events: list[WorkerEvent | _Run] = []
        self._runs: dict[RequestId, _Run] = {}  # the last thing said of these requests

    def add(self, event: WorkerEvent) -> None:
        if isinstance(event, Tokens):
            if event.tokens:
                self._add_tokens(event)
            return
        if not isinstance(event, (FirstToken, Met)):  # no tokens of its leg came before these
            self._runs.pop(event.request_id, None)
        self._events.append(event)

    def take(self) -> tuple[WorkerEvent, ...]:
        """Everything since the last time."""
        events = tuple(
            [
                Tokens(tuple(each.tokens), each.timing) if isinstance(each, _Run) else each
                for each in self._events
            ]
        )
        self.clear()
        return events

    def clear(self) -> None:
        self._events.clear()
        self._runs.clear()

    def _add_tokens(self, event: Tokens) -> None:
        first = event.tokens[0]
        run = self._runs.get(first.request_id)
        if run is not None and run.epoch == first.epoch and event.timing is None:
            run.tokens.extend(event.tokens)
        else:
            run = _Run(event.tokens, event.timing)
            self._runs[first.request_id] = run
            self._events.append(run)
