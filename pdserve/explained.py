"""Why a request went where it went: values for people, from the router to ``pdserve explain``.

Made on demand by the router (router/explanation.py) from what it kept of its decisions. Times are
seconds, as the router predicted them. This module does not know how workers are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.types import WorkerId


@dataclass(frozen=True, slots=True)
class CostPart:
    name: str  # "queue", "compute", "exposed", "step", ... as docs/routing.md names them
    cost_s: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker for one task: "prefill", "decode", or "local", which is both there.

    It could be chosen if nothing ``excluded`` it. ``why`` is the chosen one's.
    """

    worker_id: WorkerId
    task: str
    chosen: bool
    why: str
    excluded: tuple[str, ...]
    remarks: tuple[str, ...]
    parts: tuple[CostPart, ...]
    cached_tokens: int
    tokens_ahead: int  # of prompts not computed yet
    num_legs: int
    free_blocks: int

    @property
    def cost_s(self) -> float:
        return sum(part.cost_s for part in self.parts)


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """One dispatch of a request, or why there was none.

    ``attempt`` counts dispatches from 1, 0: none. ``candidates`` are the best of each task, the
    chosen first, those that were excluded last; ``num_left_out`` more were looked at.
    """

    attempt: int
    at_s: float  # since the request's arrival
    waits: str  # why it was not sent; "": it was
    prefill_place: str  # as in the ledger; "": none
    place_reason: str
    num_context_tokens: int
    expected_tokens: int  # with the answer, as long as answers usually are
    max_tokens: int  # with the answer, at most
    num_workers: int
    candidates: tuple[Candidate, ...]
    num_left_out: int = 0
    ended: str = ""  # what ended the attempt, unless it ended well or goes on


@dataclass(frozen=True, slots=True)
class RequestDecisions:
    """Oldest first. ``salted``: only prefixes of its own salt count as cached."""

    request_id: str
    policy: str
    salted: bool
    decisions: tuple[RouteDecision, ...]
