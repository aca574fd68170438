"""From the queue to the workers: runs the policy, books, sends.

``run`` places whatever can go, in order, without an await between choosing and booking. It does
not know clients; what workers answer is flight.py's affair.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from pdserve.clock import Clock
from pdserve.explained import RequestDecisions
from pdserve.log import event_log
from pdserve.types import TicketId, TransferTicket
from router.actions import CancelLeg
from router.barred_pairs import Pair
from router.bookings import LegKey
from router.config import RouterConfig
from router.deadlines import least_service_s
from router.decision_log import Asker, Considered, DecisionLog, KeptDecision
from router.explanation import (
    explained,
    explained_request,
    explanation_text,
    workers_of,
)
from router.fleet import Column, WorkerRef
from router.flight import Flight
from router.local_prefill import LocalLimits, PrefillPlace
from router.policy import (
    Colocated,
    Demand,
    Fleet,
    Placement,
    PolicyLimits,
    Unplaced,
    Waiting,
    place,
)
from router.pool import WorkerPool
from router.prefix_index import Hashes
from router.prompt_hashes import Space
from router.recent_requests import newest_called
from router.request_queue import RequestQueue
from router.route_policy import RoutePolicy
from router.session_homes import SessionHomes

logger = event_log(__name__)


class Dispatcher:
    def __init__(
        self, config: RouterConfig, clock: Clock, pool: WorkerPool, queue: RequestQueue[Flight]
    ) -> None:
        self._clock = clock
        self._pool = pool
        self._queue = queue
        self._ticket_ttl_s = config.ticket_ttl_s
        self._ticket_numbers = itertools.count(1)
        self._homes = SessionHomes()
        self._log = DecisionLog(config.explain_decisions)
        self._limits = PolicyLimits(
            dispatch_window_chunks=config.dispatch_window_chunks,
            dispatch_window_s=config.dispatch_window_ms / 1000,
            hung_after_s=config.worker_loss_s / 2,
            colocated=config.is_colocated,
            policy=RoutePolicy(config.route_policy),
            local=LocalLimits(
                PrefillPlace(config.prefill_place),
                config.local_prefill_tokens,
                is_strict=config.without_prefill_worker == "refuse",
            ),
        )

    def run(self) -> list[tuple[Flight, Waiting | None]]:
        """Dispatch every request that can go now.

        Returns those it looked at, with why they wait (None: sent). It looks no further than the
        first one that holds up the others.
        """
        looked_at: list[tuple[Flight, Waiting | None]] = []
        fleet = self._pool.fleet()
        for flight, considered in self._decisions(fleet):
            decision = considered.decision
            if isinstance(decision, Unplaced):
                looked_at.append((flight, decision.reason))
                if decision.reason.holds_up_others:
                    break
            else:
                looked_at.append((flight, None))
                self._note(flight, considered, fleet)
                self._queue.remove(flight)
                if not flight.was_dispatched:
                    self._queue.charge(flight)
                self._send(flight, decision)
                if len(self._queue):
                    self._pool.fleet()
        return looked_at

    def why_waiting(self, flight: Flight) -> Waiting | None:
        """Why this queued request cannot go, whoever stands before it; None if it could."""
        barred = self._barred()
        decision = self._decide(flight, flight.demand(), self._pool.fleet(), barred).decision
        return decision.reason if isinstance(decision, Unplaced) else None

    def cancel(self, flight: Flight, action: CancelLeg) -> None:
        session = self._pool.session(action.leg.worker)
        if session is not None:
            session.cancel(flight.request.request_id, action.leg.epoch, action.reason)

    # --- for people -------------------------------------------------------------------------

    def explain(self, wanted: str) -> RequestDecisions:
        """Where a request went and why, or why it waits.

        Raises:
            UnknownDecision: nothing is kept of it, and it is not queued.
        """
        queued = {flight.request.request_id: flight for flight in self._queue}
        kept = self._log.find(wanted)
        request_id = newest_called(queued, wanted) if kept is None else kept.asker.request_id
        flight = None if request_id is None else queued.get(request_id)
        if flight is not None:
            now = self._unsent(flight)
            return explained_request(self._log.of(now.asker), now, self._limits)
        if kept is None:
            raise self._log.unknown(wanted)
        return explained_request(kept, None, self._limits)

    def failed(self, flight: Flight, cause: str) -> None:
        """The attempt under way cannot go on."""
        self._log.failed(flight.arrival, flight.epoch, cause)

    def refused(self, flight: Flight, cause: str) -> None:
        """It is taken out of the queue unsent, before its time."""
        self._log.keep(self._unsent(flight))
        self._log.failed(flight.arrival, 0, cause)

    def _unsent(self, flight: Flight) -> KeptDecision:
        """What a decision would be made from now."""
        fleet = self._pool.fleet()
        considered = self._decide(flight, flight.demand(), fleet, self._barred())
        return KeptDecision(_asker(flight), 0, self._clock.now(), considered, fleet.views)

    # --- choosing -----------------------------------------------------------------------------

    def _decisions(self, fleet: Fleet) -> Iterator[tuple[Flight, Considered]]:
        """One for each queued request, in order; ``fleet`` is renewed by the caller in place."""
        # A pool without workers is so for all who need it: with a long queue that must be cheap.
        missing: dict[bool, Considered] = {}
        barred = self._barred()  # once: a bar may end between two looks at the clock
        for flight in self._queue:
            demand = flight.demand()
            placed = demand.redeem_at or demand.share_at
            if placed is None and demand.needs_decode in missing:
                yield flight, missing[demand.needs_decode]
                continue
            considered = self._decide(flight, demand, fleet, barred)
            decision = considered.decision
            if self._is_too_late(flight, demand, fleet):
                considered = considered._replace(decision=Unplaced(Waiting.TOO_LATE))
            elif isinstance(decision, Unplaced) and demand.redeem_at is None:
                if decision.reason in (Waiting.NO_PREFILL_WORKER, Waiting.NO_DECODE_WORKER):
                    missing[demand.needs_decode] = considered
            elif isinstance(decision, Unplaced) and decision.reason is Waiting.BARRED:
                considered = self._elsewhere(flight, fleet, barred) or considered
            yield flight, considered

    def _is_too_late(self, flight: Flight, demand: Demand, fleet: Fleet) -> bool:
        """Whether it would only take time from others: nothing is computed yet, nor can be in
        time."""
        if flight.deadline_s is None or flight.was_dispatched:
            return False
        least_s = least_service_s(demand, fleet, self._cached_tokens(flight, fleet))
        return least_s is not None and self._clock.now() + least_s > flight.deadline_s

    def _elsewhere(
        self, flight: Flight, fleet: Fleet, barred: frozenset[Pair]
    ) -> Considered | None:
        """For KV that no decode worker can fetch just now: another prefill worker, if one can."""
        considered = self._decide(flight, flight.fresh_demand(), fleet, barred)
        if not isinstance(considered.decision, Placement):
            return None
        for action in flight.give_up_ticket("no decode worker can fetch it"):
            self.cancel(flight, action)
        return considered

    def _barred(self) -> frozenset[Pair]:
        return self._pool.barred.active(self._clock.now())

    def _decide(
        self, flight: Flight, demand: Demand, fleet: Fleet, barred: frozenset[Pair]
    ) -> Considered:
        home = self._homes.of(flight.hints.tenant, flight.hints.session)
        if home:
            demand = replace(demand, prefer=home)
        cached = self._cached_tokens(flight, fleet)
        decision = place(demand, fleet, self._limits, barred, cached)
        return Considered(decision, demand, cached, barred)

    def _note(self, flight: Flight, considered: Considered, fleet: Fleet) -> None:
        """Before it is sent: what the choice was made from."""
        kept = KeptDecision(
            _asker(flight), flight.epoch + 1, self._clock.now(), considered, fleet.views
        )
        self._log.keep(kept)
        if flight.hints.explain:
            decision = explained(kept, self._limits, max_candidates=8)
            flight.ledger.explained(explanation_text(decision))

    def _cached_tokens(self, flight: Flight, fleet: Fleet) -> Column | None:
        if self._limits.policy is not RoutePolicy.COST:
            return None
        hashes = flight.hashes.of(fleet.spaces, flight.context_ids)
        return self._pool.caches.cached_tokens(fleet, hashes)

    def _send(self, flight: Flight, choice: Placement | Colocated) -> None:
        ticket = None
        workers = frozenset(ref.worker_id for ref in workers_of(choice))
        self._homes.went(flight.hints.tenant, flight.hints.session, workers)
        if isinstance(choice, Placement) and choice.decode is not None:
            ticket = self._draw_ticket(choice)
        sent: dict[Space, list[tuple[WorkerRef, LegKey]]] = {}
        hashes: dict[Space, Hashes] = {}
        for submit in flight.dispatch(choice, ticket, self._clock.now()):
            session = self._pool.session(submit.worker)
            assert session is not None, "a view is of a session in the pool"
            layout = session.hello.layout
            space = (session.hello.model_fingerprint, layout.block_size)
            hashes |= flight.hashes.of([space], submit.attempt.context_ids)
            known = self._pool.caches.num_known(submit.worker, hashes[space]) * layout.block_size
            num_tokens = submit.num_compute_tokens
            key = session.submit(
                submit.leg,
                submit.attempt,
                submit.ticket,
                num_blocks=layout.num_blocks(submit.num_kv_tokens),
                num_tokens=max(num_tokens - known, min(num_tokens, 1)),  # the last is computed
            )
            sent.setdefault(space, []).append((submit.worker, key))
            logger.debug(
                "submitted", request=flight.request.request_id, epoch=flight.epoch,
                leg=submit.leg, worker=submit.worker.worker_id,
            )  # fmt: skip
        for space, legs in sent.items():
            self._pool.caches.expect_of_all(legs, hashes[space])

    def _draw_ticket(self, choice: Placement) -> TransferTicket:
        session = self._pool.session(choice.prefill)
        assert session is not None, "a view is of a session in the pool"
        number = next(self._ticket_numbers)
        return TransferTicket(
            ticket_id=TicketId(f"{self._pool.router_id}.{number}"),
            epoch=0,  # the flight fills in epoch and length
            worker_id=choice.prefill.worker_id,
            incarnation=choice.prefill.incarnation,
            endpoints=session.hello.endpoints,
            layout=session.hello.layout,
            num_tokens=0,
            expires_in_s=self._ticket_ttl_s,
        )


def _asker(flight: Flight) -> Asker:
    request = flight.request
    salted = bool(request.cache_salt)
    return Asker(request.request_id, flight.arrival, flight.ledger.started_s, salted)
