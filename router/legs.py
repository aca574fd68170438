"""The open legs of a request's attempt, and how an attempt becomes Submits. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pdserve.types import Attempt, Leg, TransferTicket
from router.policy import Colocated, Placement, WorkerRef


@dataclass(frozen=True, slots=True)
class OpenLeg:
    """A leg that was sent and, as far as is known, still goes on."""

    worker: WorkerRef
    leg: Leg
    epoch: int


@dataclass(frozen=True, slots=True)
class SubmitLeg:
    worker: WorkerRef
    leg: Leg
    attempt: Attempt
    ticket: TransferTicket | None
    num_kv_tokens: int  # whose blocks the leg takes at first
    num_compute_tokens: int  # prompt tokens it must compute


class OpenLegs:
    """At most one prefill leg and one decode (or colocated) leg."""

    def __init__(self) -> None:
        self.prefill: OpenLeg | None = None
        self.decode: OpenLeg | None = None

    def find(self, worker: WorkerRef, epoch: int, *kinds: Leg) -> OpenLeg | None:
        """The open leg of one of these kinds that an event of this worker and epoch is about."""
        for leg in (self.prefill, self.decode):
            if leg is not None and leg.leg in kinds and (leg.worker, leg.epoch) == (worker, epoch):
                return leg
        return None

    def on(self, worker: WorkerRef) -> OpenLeg | None:
        """The leg on this worker; a worker has one role, so there is no second one."""
        for leg in (self.decode, self.prefill):
            if leg is not None and leg.worker == worker:
                return leg
        return None

    def close(self, leg: OpenLeg) -> None:
        if self.prefill == leg:
            self.prefill = None
        elif self.decode == leg:
            self.decode = None

    def take_all(self) -> list[OpenLeg]:
        """The open ones; none is open after."""
        legs = [leg for leg in (self.prefill, self.decode) if leg is not None]
        self.prefill = self.decode = None
        return legs


def pair_submits(
    attempt: Attempt, choice: Placement, ticket: TransferTicket | None, *, redeems: bool
) -> list[SubmitLeg]:
    """For two workers. A redeem takes and computes nothing new at the prefill worker."""
    num_tokens = attempt.num_context_tokens
    new_tokens = 0 if redeems else num_tokens
    submits = [SubmitLeg(choice.prefill, Leg.PREFILL, attempt, ticket, new_tokens, new_tokens)]
    if choice.decode is not None:
        submits.append(SubmitLeg(choice.decode, Leg.DECODE, attempt, ticket, num_tokens + 1, 0))
    return submits


def colocated_submits(attempt: Attempt, choice: Colocated) -> list[SubmitLeg]:
    num_tokens = attempt.num_context_tokens - choice.num_shared_tokens
    return [SubmitLeg(choice.worker, Leg.COLOCATED, attempt, None, num_tokens + 1, num_tokens)]


def ticket_for(
    attempt: Attempt, kept: TransferTicket | None, fresh: TransferTicket
) -> TransferTicket:
    """The ticket of this attempt: the kept one under a later epoch, or the fresh one.

    The time left is always the fresh one's: a ticket lives from its latest dispatch.
    """
    return replace(
        kept or fresh,
        epoch=attempt.epoch,
        num_tokens=attempt.num_context_tokens,
        expires_in_s=fresh.expires_in_s,
    )
