"""One leg on a prefill worker: its state and what it holds.

    waiting -> queued -> computing -> computed -> ended
       (for its reader)             (for the Ack)

Held (the reader is gone, the ticket still valid) is no state here: computing goes on, so it is the
export's own matter (kvtransfer/exporter.py). Changed only by worker.py, on the event loop thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from enum import IntEnum, auto

from engine.sequence import Sequence
from engine.step import StepRow
from kvtransfer.exporter import Export
from pdserve.messages import FirstToken, Submit
from pdserve.roles import EventSink
from pdserve.types import Attempt, PrefillTiming, RequestId, TokenEvent
from prefill_worker.scheduler import PromptView


class LegState(IntEnum):
    WAITING = auto()  # ticket offered, no reader yet
    QUEUED = auto()  # may compute
    COMPUTING = auto()  # at least one chunk was planned
    COMPUTED = auto()  # first token reported, KV kept for the reader
    ENDED = auto()


SCHEDULABLE = frozenset({LegState.QUEUED, LegState.COMPUTING})


@dataclass(slots=True, eq=False)
class PrefillLeg:
    submit: Submit
    sink: EventSink
    order: int
    sequence: Sequence
    state: LegState
    submitted_s: float
    export: Export | None = None
    started_s: float | None = None  # first chunk
    first_token: FirstToken | None = None
    watch: asyncio.Task[None] | None = None
    num_cached_tokens: int = 0  # of the context, computed before this leg came

    @property
    def attempt(self) -> Attempt:
        return self.submit.attempt

    @property
    def request_id(self) -> RequestId:
        return self.submit.attempt.request.request_id

    @property
    def epoch(self) -> int:
        return self.submit.attempt.epoch

    @property
    def view(self) -> PromptView:
        sequence = self.sequence
        return PromptView(
            self.attempt.request.priority,
            self.order,
            sequence.num_computed,
            len(sequence.token_ids),
        )

    def next_row(self, num_tokens: int) -> StepRow:
        """The next chunk of the prompt; samples if it is the last."""
        sequence = self.sequence
        samples = num_tokens == sequence.num_uncomputed
        return StepRow(sequence, sequence.num_computed, num_tokens, samples)

    def record_first_token(self, token: TokenEvent, ended_s: float) -> FirstToken:
        """The report of the first token; kept to be repeated to a later epoch."""
        assert self.started_s is not None, "a token without a chunk"
        timing = PrefillTiming(
            self.started_s - self.submitted_s, ended_s - self.started_s, self.num_cached_tokens
        )
        self.first_token = FirstToken(token, timing)
        return self.first_token

    def inherits(self, submit: Submit) -> bool:
        """Whether ``submit`` asks for what this leg holds: same ticket and tokens, later epoch."""
        mine, other = self.submit, submit
        return (
            mine.ticket is not None
            and other.ticket is not None
            and mine.ticket.ticket_id == other.ticket.ticket_id
            and mine.attempt.epoch < other.attempt.epoch
            and mine.attempt.forced_ids == other.attempt.forced_ids
            and mine.attempt.request.prompt_ids == other.attempt.request.prompt_ids
        )

    def successor(self, submit: Submit) -> PrefillLeg:
        """The leg of a later epoch that takes over the sequence, its progress and first token."""
        self.sequence.attempt = submit.attempt
        first_token = self.first_token
        if first_token is not None:
            token = first_token.token._replace(epoch=submit.attempt.epoch)
            first_token = replace(first_token, token=token)
        return replace(self, submit=submit, first_token=first_token, export=None, watch=None)
