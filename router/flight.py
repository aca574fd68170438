"""One request at the router: docs/protocol.md sections 2 and 3 as a state machine.

    queued -> dispatched -> prefilled -> committed -> ended
       ^__________|____________|____________|   (failure, Busy)

Events and times come in, actions (actions.py) come out; nothing here waits, sends or looks at a
clock. While a request is queued for a redeem, its prefill leg stays open and is still listened to.
It does not choose workers (policy.py) nor keep bookings (session.py).
"""

from __future__ import annotations

from dataclasses import replace

from pdserve.errors import PdserveError
from pdserve.messages import (
    AlreadyCommitted,
    Busy,
    Committed,
    Ended,
    Failed,
    FirstToken,
    KvFailed,
    Tokens,
    WorkerEvent,
)
from pdserve.route_hints import RouteHints
from pdserve.types import Attempt, KvTiming, Leg, Request, TokenEvent, TransferTicket
from router.actions import (
    Action,
    BarPair,
    BlockWorker,
    CancelLeg,
    ClearPair,
    Deliver,
    End,
    Requeue,
)
from router.barred_pairs import Pair
from router.flight_state import FlightState
from router.ledger import Ledger
from router.legs import (
    OpenLeg,
    OpenLegs,
    SubmitLeg,
    colocated_submits,
    pair_submits,
    ticket_for,
)
from router.next_tokens import next_tokens
from router.policy import Colocated, Demand, Placement, WorkerRef
from router.prompt_hashes import PromptHashes
from router.retries import Retries, own_fault

PAIR_FAULTS = frozenset({"peer_unreachable", "peer_silent"})


class Flight:
    def __init__(
        self,
        request: Request,
        arrival: int,
        ledger: Ledger,
        *,
        max_redispatches: int,
        follows: Flight | None = None,
        hints: RouteHints | None = None,
        expected_tokens: int | None = None,
    ) -> None:
        """``follows``: an answer to the same prompt, whose KV this one shares. ``expected_tokens``:
        of the answer; None: as many as it may have."""
        self.request = request
        self.arrival = arrival
        self.ledger = ledger
        self.state = FlightState.QUEUED
        self.epoch = 0  # of the latest dispatch
        self.kv_at: WorkerRef | None = None  # the decode worker that had the prompt's KV last
        self.hints = hints or RouteHints()
        self.expected_tokens = expected_tokens or request.sampling.max_tokens
        self._follows = follows
        self.hashes = PromptHashes(request.cache_salt)
        self._legs = OpenLegs()
        self._retries = Retries(max_redispatches)
        self._generated: list[int] = []
        self._forced_ids: tuple[int, ...] = ()  # of the attempt under way
        self._ticket: TransferTicket | None = None  # while the prefill leg can be redeemed
        self._pair: Pair | None = None
        self._first_seen = False  # FirstToken of the prefill under way
        self._decode_ended = False  # before commit, and the first token is not known yet

    # --- for the queue and the policy ---------------------------------------------------------

    @property
    def was_dispatched(self) -> bool:
        return self.epoch > 0

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def deadline_s(self) -> float | None:
        return self.request.deadline_s

    @property
    def num_prompt_tokens(self) -> int:
        """Those that are to be computed for it alone, as far as can be foreseen."""
        return 0 if self.shares else len(self.request.prompt_ids)

    @property
    def tenant(self) -> str:
        return self.hints.tenant

    @property
    def service_tokens(self) -> float:
        return self.num_prompt_tokens + self.expected_tokens

    @property
    def shares(self) -> bool:
        """Whether another request computes its prompt."""
        return self._follows is not None

    @property
    def has_ticket(self) -> bool:
        """Whether KV is on its way, or held for a reader."""
        return self._ticket is not None

    @property
    def num_delivered(self) -> int:
        return len(self._generated)

    @property
    def context_ids(self) -> tuple[int, ...]:
        """Prompt, and what was generated so far."""
        return self.request.prompt_ids + tuple(self._generated)

    def demand(self) -> Demand:
        """What it needs of the workers, while it is queued."""
        held = self._legs.prefill
        if held is None:
            return self.fresh_demand()
        return replace(
            self.fresh_demand(),
            num_context_tokens=len(self.request.prompt_ids) + len(self._forced_ids),
            needs_decode=True,
            redeem_at=held.worker,
            waits=False,
            share_at=None,
        )

    def fresh_demand(self) -> Demand:
        """What a new attempt needs, whatever a prefill worker still holds."""
        num_prompt, max_tokens = len(self.request.prompt_ids), self.request.sampling.max_tokens
        num_generated = len(self._generated)
        return Demand(
            num_context_tokens=num_prompt + num_generated,
            max_total_tokens=num_prompt + max_tokens,
            needs_decode=max_tokens - num_generated > 1,
            avoid=self._retries.avoid,
            waits=self._waits_for_other(),
            share_at=None if self._follows is None else self._follows.kv_at,
            num_shared_tokens=num_prompt,
            turn=self.arrival,
            expected_total_tokens=num_prompt + max(self.expected_tokens, num_generated + 1),
        )

    def _waits_for_other(self) -> bool:
        other = self._follows
        return other is not None and other.kv_at is None and other.state is not FlightState.ENDED

    # --- dispatch -----------------------------------------------------------------------------

    def give_up_ticket(self, reason: str) -> list[CancelLeg]:
        """While queued for a redeem: compute again elsewhere instead."""
        return self._cancel_legs(reason)

    def dispatch(
        self, choice: Placement | Colocated, ticket: TransferTicket | None, now_s: float
    ) -> list[SubmitLeg]:
        """Send it to the chosen workers under the next epoch.

        ``ticket`` is a fresh one of the chosen prefill worker, None if no KV will move; a redeem
        keeps the one it has, with the fresh one's time left.
        """
        assert self.state is FlightState.QUEUED, f"dispatched while {self.state}"
        redeems = self._legs.prefill is not None
        self.epoch += 1
        self._decode_ended = False
        if not redeems:
            self._first_seen = False
            self._forced_ids = tuple(self._generated)
        self.state = FlightState.PREFILLED if self._first_seen else FlightState.DISPATCHED
        attempt = Attempt(self.request, self.epoch, self._forced_ids)
        if isinstance(choice, Colocated):
            worker_id = choice.worker.worker_id
            self.ledger.dispatched(now_s, worker_id, worker_id, where=choice.where)
            submits = colocated_submits(attempt, choice)
        else:
            if ticket is not None:
                self._ticket = ticket_for(attempt, self._ticket, ticket)
            self._pair = self._note_pair(choice, now_s, redeems=redeems)
            submits = pair_submits(attempt, choice, self._ticket, redeems=redeems)
        for submit in submits:
            leg = OpenLeg(submit.worker, submit.leg, self.epoch)
            if submit.leg is Leg.PREFILL:
                self._legs.prefill = leg
            else:
                self._legs.decode = leg
        return submits

    def _note_pair(self, choice: Placement, now_s: float, *, redeems: bool) -> Pair | None:
        prefill_id = choice.prefill.worker_id
        decode_id = None if choice.decode is None else choice.decode.worker_id
        self.ledger.dispatched(now_s, prefill_id, decode_id, keeps_prefill=redeems)
        return None if decode_id is None else (prefill_id, decode_id)

    # --- events -------------------------------------------------------------------------------

    def receive(self, worker: WorkerRef, event: WorkerEvent, now_s: float) -> list[Action]:
        """What a worker reports. Events of legs that are not open any more change nothing."""
        match event:
            case FirstToken():
                return self._first_token(worker, event, now_s)
            case Tokens():
                return self._tokens(worker, event, now_s)
            case Committed():
                return self._committed(worker, event, now_s)
            case KvFailed():
                return self._kv_failed(worker, event, now_s)
            case AlreadyCommitted():
                return self._already_committed(worker, event, now_s)
            case Busy(epoch=epoch, leg=kind):
                leg = self._legs.find(worker, epoch, kind)
                return [] if leg is None else self._busy(leg)
            case Failed(epoch=epoch, leg=kind):
                leg = self._legs.find(worker, epoch, kind)
                return [] if leg is None else self._leg_failed(leg, event, now_s)
            case Ended(epoch=epoch, leg=kind):
                leg = self._legs.find(worker, epoch, kind)
                return [] if leg is None else self._leg_ended(leg, now_s)
            case _:  # Admitted: the booking knows
                return []

    def worker_lost(
        self, worker: WorkerRef, cause: str, now_s: float, *, died: bool
    ) -> list[Action]:
        """Every leg on this worker is gone. ``died``: not by its own will."""
        leg = self._legs.on(worker)
        if leg is None:
            return []
        return self._lose(leg, f"worker {worker.worker_id} lost: {cause}", now_s, died=died)

    def abandon(self, error: PdserveError, now_s: float) -> list[Action]:
        """The client left, the deadline passed, the router stops, or no worker came."""
        return [] if self.state is FlightState.ENDED else self._end(error, str(error), now_s)

    # --- transitions --------------------------------------------------------------------------

    def _first_token(self, worker: WorkerRef, event: FirstToken, now_s: float) -> list[Action]:
        epoch = event.token.epoch
        leg = self._legs.find(worker, epoch, Leg.PREFILL, Leg.COLOCATED)
        if leg is None:
            return []
        self._first_seen = True
        actions = self._deliver(leg, (event.token,), now_s)
        self.ledger.prefill_measured(epoch, event.timing)
        if leg.leg is Leg.COLOCATED and self.state is FlightState.DISPATCHED:
            self.state = FlightState.COMMITTED
            self.kv_at = worker
        elif self.state is FlightState.DISPATCHED:
            self.state = FlightState.PREFILLED
            if self._decode_ended and self._legs.decode is not None:
                cause = "the decode leg ended without a commit"
                return actions + self._lose(self._legs.decode, cause, now_s)
        return actions

    def _tokens(self, worker: WorkerRef, event: Tokens, now_s: float) -> list[Action]:
        if not event.tokens or self.state is not FlightState.COMMITTED:
            return []
        leg = self._legs.find(worker, event.tokens[0].epoch, Leg.DECODE, Leg.COLOCATED)
        if leg is None:
            return []
        if event.timing is not None:
            self.ledger.decode_measured(event.timing)
        return self._deliver(leg, event.tokens, now_s)

    def _deliver(self, leg: OpenLeg, tokens: tuple[TokenEvent, ...], now_s: float) -> list[Action]:
        """Pass on what is next, drop what was delivered, take a gap as a failure of the leg."""
        due = len(self._generated)
        told = next_tokens(tokens, due, self.request.sampling.max_tokens)
        actions: list[Action] = []
        if told.tokens:
            self._generated += [token.token_id for token in told.tokens]
            self.ledger.delivered(now_s, due, told.tokens[0].epoch, len(told.tokens))
            actions.append(Deliver(told.tokens))
        if told.gap:  # its worker knows of no fault and would go on
            return [*actions, CancelLeg(leg, told.gap), *self._lose(leg, told.gap, now_s)]
        if told.end_it:
            self._legs.close(leg)  # ends by itself
            return actions + self._end(None, "finished", now_s)
        return actions

    def _committed(self, worker: WorkerRef, event: Committed, now_s: float) -> list[Action]:
        if self._legs.find(worker, event.epoch, Leg.DECODE) is None:
            return []
        self.state = FlightState.COMMITTED
        self.kv_at = worker
        self._ticket = None
        self.ledger.committed(now_s, event.timing)
        return [ClearPair(self._pair)] if self._pair is not None else []

    def _kv_failed(self, worker: WorkerRef, event: KvFailed, now_s: float) -> list[Action]:
        leg = self._legs.find(worker, event.epoch, Leg.DECODE)
        if leg is None:
            return []
        actions: list[Action] = []
        if event.code in PAIR_FAULTS and self._pair is not None:
            actions.append(BarPair(self._pair))
        return actions + self._lose(leg, f"{event.code}: {event.detail}", now_s)

    def _already_committed(
        self, worker: WorkerRef, event: AlreadyCommitted, now_s: float
    ) -> list[Action]:
        """The worker goes on with an earlier attempt: that one is ours again, how its KV came is
        not known any more."""
        leg = self._legs.find(worker, event.epoch, Leg.DECODE)
        if leg is None:
            return []
        self._legs.close(leg)
        actions: list[Action] = [*self._cancel_legs("committed under an earlier epoch")]
        self._legs.decode = replace(leg, epoch=event.committed_epoch)
        self.state = FlightState.COMMITTED
        self.kv_at = worker
        self.ledger.committed(now_s, KvTiming())
        return actions

    def _busy(self, leg: OpenLeg) -> list[Action]:
        self._legs.close(leg)
        actions: list[Action] = [BlockWorker(leg.worker)]
        if self.state is FlightState.COMMITTED and leg.leg is Leg.PREFILL:
            return actions
        actions += self._cancel_legs(f"{leg.leg} worker busy")
        if self.state is FlightState.QUEUED:  # the held ticket is gone
            return actions
        self.state = FlightState.QUEUED
        return [*actions, Requeue(f"{leg.leg} worker {leg.worker.worker_id} busy")]

    def _leg_failed(self, leg: OpenLeg, event: Failed, now_s: float) -> list[Action]:
        committed = self.state is FlightState.COMMITTED
        error = None if committed and leg.leg is Leg.PREFILL else own_fault(event)
        if error is not None:
            self._legs.close(leg)
            return self._end(error, event.code, now_s)
        return self._lose(leg, f"{event.code}: {event.detail}", now_s)

    def _leg_ended(self, leg: OpenLeg, now_s: float) -> list[Action]:
        committed = self.state is FlightState.COMMITTED
        if leg.leg is Leg.PREFILL and (self._first_seen or committed):
            self._legs.close(leg)  # acknowledged: nothing is left to redeem
            self._ticket = None
            return []
        if leg.leg is Leg.DECODE and not committed and not self._first_seen:
            self._decode_ended = True  # rightly so if the first token turns out to be the last
            return []
        return self._lose(leg, f"the {leg.leg} leg ended early", now_s)

    # --- failure and end ----------------------------------------------------------------------

    def _lose(self, leg: OpenLeg, cause: str, now_s: float, *, died: bool = False) -> list[Action]:
        """A leg cannot go on: redeem if the KV is still there, else a new attempt, else the end."""
        self._legs.close(leg)
        committed = self.state is FlightState.COMMITTED
        if committed and leg.leg is Leg.PREFILL:
            return []
        self._retries.count(leg.worker.worker_id, died=died)
        actions: list[Action] = []
        if committed or leg.leg is Leg.PREFILL or self._ticket is None:
            actions += self._cancel_legs(cause)
        error = self._retries.check_deaths(cause)
        if error is None and self.state is FlightState.QUEUED:
            return actions  # the held ticket is gone; the retry is spent already
        error = error or self._retries.spend(cause)
        if error is not None:
            return actions + self._end(error, cause, now_s)
        self.state = FlightState.QUEUED
        return [*actions, Requeue(cause)]

    def _end(self, error: PdserveError | None, reason: str, now_s: float) -> list[Action]:
        actions: list[Action] = [*self._cancel_legs(reason)]
        self.state = FlightState.ENDED
        self.ledger.ended(now_s)
        return [*actions, End(error)]

    def _cancel_legs(self, reason: str) -> list[CancelLeg]:
        """Every open leg, and with them the ticket."""
        self._ticket = None
        return [CancelLeg(leg, reason) for leg in self._legs.take_all()]
