"""One leg on a decode worker: its state and what it holds.

    DECODE     opening -> leasing -> receiving -> committed -> running <-> parked -> ended
    COLOCATED  prefilling --------------------------------> running <-> parked -> ended

(docs/protocol.md 3.) Mutable, owned by the event loop thread, changed only by worker.py,
planning.py and intake.py; the state by ``become``, which keeps the worker's counts. Not here:
decisions (scheduler.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import IntEnum, auto

from decode_worker.parking import ParkedKv
from decode_worker.room import Promise
from engine.loop import StepTiming
from engine.sequence import Sequence
from pdserve.messages import Submit
from pdserve.roles import EventSink
from pdserve.types import Attempt, Leg, RequestId


class LegState(IntEnum):  # an index of LegCounts
    OPENING = auto()  # admitted, blocks promised, KV read being opened
    LEASING = auto()  # holder is ready, waiting for blocks
    RECEIVING = auto()
    COMMITTED = auto()  # KV verified, waiting for a place in the batch
    PREFILLING = auto()  # blocks leased, computing its own prompt (colocated, or after recompute)
    RUNNING = auto()
    PARKED = auto()
    ENDED = auto()


ARRIVING = frozenset({LegState.OPENING, LegState.LEASING, LegState.RECEIVING})
OWNED = frozenset({LegState.COMMITTED, LegState.PREFILLING, LegState.RUNNING, LegState.PARKED})


class LegCounts:
    """How many legs of one worker are in which state: what is asked several times a step."""

    __slots__ = ("_by_state",)

    def __init__(self) -> None:
        self._by_state = [0] * (max(LegState) + 1)

    def of(self, state: LegState) -> int:
        return self._by_state[state]

    @property
    def num_owned(self) -> int:
        counts = self._by_state
        return sum([counts[state] for state in OWNED])

    @property
    def num_arriving(self) -> int:
        counts = self._by_state
        return sum([counts[state] for state in ARRIVING])

    def add(self, state: LegState, change: int) -> None:
        self._by_state[state] += change


@dataclass(slots=True, eq=False)
class DecodeLeg:
    """``counts``: of its worker. It is among them from its making until it has ended."""

    submit: Submit
    sink: EventSink
    order: int  # admission number: lower is older
    state: LegState
    counts: LegCounts
    promise: Promise | None = None  # of blocks: admitted but not leased yet
    sequence: Sequence | None = None
    parked: ParkedKv | None = None
    task: asyncio.Task[None] | None = None
    submitted_s: float = 0.0
    started_s: float | None = None  # first own prompt chunk (colocated)
    ready_s: float = 0.0  # committed, or first token sampled: waiting for its first decode step
    reported_timing: bool = False
    first_step: StepTiming | None = None  # the first decode step
    sent_first_token: bool = field(default=False)
    num_cached_tokens: int = 0  # of the context, computed before this leg came (colocated)

    def __post_init__(self) -> None:
        self.counts.add(self.state, 1)

    def become(self, state: LegState) -> None:
        """ENDED is counted nowhere, and final: the KV read of a leg that was ended meanwhile may
        still be about to say how far it is."""
        if self.state is LegState.ENDED:
            return
        self.counts.add(self.state, -1)
        self.state = state
        if state is not LegState.ENDED:
            self.counts.add(state, 1)

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
    def kind(self) -> Leg:
        return self.submit.leg

    @property
    def held(self) -> Sequence:
        """The sequence of a leg that has one."""
        assert self.sequence is not None, f"{self.request_id} has no sequence in {self.state}"
        return self.sequence
