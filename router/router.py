"""The router's core: requests in as token ids, tokens out, workers in between.

It ties the queue, the workers' pool, the dispatcher and one state machine a request (flight.py)
together and carries out what the state machines ask for. Text, HTTP and gRPC are above it
(text_generation.py, router/http, pdserve/rpc). Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from functools import partial

from pdserve.clock import Clock
from pdserve.errors import (
    DeadlineExceeded,
    NoWorkers,
    Overloaded,
    PdserveError,
    RequestCancelled,
    ShuttingDown,
)
from pdserve.explained import RequestDecisions
from pdserve.links import RouterLink
from pdserve.log import event_log
from pdserve.messages import Committed, FirstToken, LegEvent, Tokens
from pdserve.request_timing import RequestTiming
from pdserve.route_hints import RouteHints
from pdserve.types import ModelInfo, Request, RequestId
from router import admission
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
from router.cluster_view import ClusterStatus, WorkerEntry
from router.config import RouterConfig
from router.deadlines import least_decode_s
from router.dispatcher import Dispatcher
from router.flight import Flight
from router.growth import GrowthEstimate
from router.ledger import Ledger
from router.policy import Waiting
from router.pool import WorkerPool
from router.request_queue import RequestQueue
from router.session import SessionEnd, WorkerSession
from router.timers import Timer, Timers
from router.token_stream import TokenStream

logger = event_log(__name__)


class _Entry:
    """A request under way, with what the router itself must undo when it ends."""

    def __init__(self, flight: Flight, stream: TokenStream) -> None:
        self.flight = flight
        self.stream = stream
        self.deadline: Timer | None = None
        self.patience: Timer | None = None  # while no worker could take it


class Router:
    """Satisfies TokenService (router/generation.py)."""

    def __init__(self, config: RouterConfig, model: ModelInfo, clock: Clock) -> None:
        self._config = config
        self._model = model
        self._servable = model  # with the context that the joined workers can take
        self._clock = clock
        self._timers = Timers(clock)
        self._queue: RequestQueue[Flight] = RequestQueue(config.max_queue)
        self._pool = WorkerPool(config, model, clock, self._timers, self)
        self._dispatcher = Dispatcher(config, clock, self._pool, self._queue)
        self._speed = admission.PrefillSpeed()
        self._growth = GrowthEstimate()
        self._entries: dict[RequestId, _Entry] = {}
        self._arrivals = itertools.count(1)
        self._wake_handle: asyncio.Handle | None = None
        self._draining = False
        self.serving_changed = asyncio.Event()  # set when can_serve() may differ; readers clear it
        self._idle = asyncio.Event()
        self._idle.set()

    # --- faces --------------------------------------------------------------------------------

    @property
    def model(self) -> ModelInfo:
        """``max_model_len`` is the longest context that the joined workers can take."""
        return self._servable

    def start(
        self,
        request: Request,
        *,
        tokenize_s: float = 0.0,
        follows: RequestId | None = None,
        hints: RouteHints | None = None,
    ) -> TokenStream:
        """See TokenService.start."""
        if self._draining:
            raise ShuttingDown("the router is shutting down")
        admission.check_model(request, self._servable)
        now_s = self._clock.now()
        hints = hints or RouteHints()
        request_id = self._unused_id(request.request_id)
        if request_id != request.request_id:
            request = replace(request, request_id=request_id)
        ledger = Ledger(now_s, tokenize_s, len(request.prompt_ids))
        leader = None if follows is None else self._entries.get(follows)
        flight = Flight(
            request, next(self._arrivals), ledger,
            max_redispatches=self._config.max_redispatches,
            follows=None if leader is None else leader.flight, hints=hints,
            expected_tokens=self._growth.expected(hints.tenant, request.sampling.max_tokens),
        )  # fmt: skip
        self._admit(flight, now_s)
        return self._take_on(flight).stream

    def _admit(self, flight: Flight, now_s: float) -> None:
        """Queue it, if there is room and it can come in time."""
        if flight.deadline_s is None and not self._queue.is_full:
            self._queue.add(flight, 0.0)
            return  # how long it will wait is nobody's question
        wait_s = self._estimated_wait_s(len(flight.request.prompt_ids))
        if wait_s is not None:
            decode_s = least_decode_s(flight.demand(), self._pool.fleet())
            admission.check_deadline(flight.request, now_s, wait_s + decode_s)
        self._queue.add(flight, admission.retry_after_s(wait_s))

    def status(self) -> ClusterStatus:
        return ClusterStatus(
            mode=self._config.mode,
            model=self._model.name,
            workers=tuple(_worker_entry(session) for session in self._pool.sessions()),
            queue_len=len(self._queue),
            num_in_flight=len(self._entries),
            num_tickets=sum(entry.flight.has_ticket for entry in self._entries.values()),
            draining=self._draining,
            kv_pairs=self._pool.pairs.views(),
            needed_roles=self._config.needed_roles,
            refused=self._pool.refused.views(),
        )

    def explain(self, request_id: str) -> RequestDecisions:
        """Why it went where it went, or waits. "last": the newest. Raises UnknownDecision."""
        return self._dispatcher.explain(request_id)

    # --- life ---------------------------------------------------------------------------------

    async def serve_worker(self, link: RouterLink) -> None:
        """One worker's session, from its first message to its end."""
        await self._pool.serve(link)

    def drain_worker(self, worker_id: str, grace_s: float) -> None:
        """Give one worker nothing new and let it leave when it has finished."""
        for session in self._pool.sessions():
            if session.ref.worker_id == worker_id:
                session.drain(grace_s)
                self.workers_changed()

    async def drain(self, grace_s: float) -> None:
        """Take on nothing more; let running requests finish for ``grace_s``, then cancel them."""
        self._draining = True
        self.serving_changed.set()
        self._wake()
        over = asyncio.Event()
        timer = self._timers.at(self._clock.now() + grace_s, over.set)
        waits = [asyncio.ensure_future(event.wait()) for event in (self._idle, over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
        for entry in list(self._entries.values()):
            self._abandon(entry, ShuttingDown("the router is shutting down"))

    async def close(self) -> None:
        """Cancel what is left, end all sessions. Returns when no task of the router is left."""
        await self.drain(0.0)
        await self._pool.close()
        await self._timers.close()
        if self._wake_handle is not None:
            self._wake_handle.cancel()

    # --- pool observer ------------------------------------------------------------------------

    def worker_event(self, session: WorkerSession, event: LegEvent) -> None:
        entry = self._entries.get(_request_of(event))
        if entry is None:
            return
        if isinstance(event, FirstToken) and not entry.flight.shares:
            self._speed.observe(len(entry.flight.request.prompt_ids), event.timing.compute_s)
        now_s = self._clock.now()
        if isinstance(event, Committed):
            prefill, exposed_s = entry.flight.ledger.exposed(now_s)
            self._pool.observe_exposed(prefill, exposed_s, event.timing.num_tokens)
            if event.epoch == entry.flight.epoch:  # else it came from another one
                self._pool.pairs.read((prefill, session.ref.worker_id), event.timing)
        self._apply(entry, entry.flight.receive(session.ref, event, now_s))
        if isinstance(event, (Committed, FirstToken)):
            self._wake()  # other answers to the prompt may share its KV now

    def worker_lost(self, session: WorkerSession, end: SessionEnd) -> None:
        now_s, cause = self._clock.now(), str(end.error)
        for entry in list(self._entries.values()):
            actions = entry.flight.worker_lost(session.ref, cause, now_s, died=end.died)
            self._apply(entry, actions)

    def pool_changed(self) -> None:
        self._wake()

    def workers_changed(self) -> None:
        views, roles = self._pool.views(), self._config.used_roles
        longest = admission.servable_len(self._model.max_model_len, views, roles)
        self._servable = replace(self._model, max_model_len=longest)
        self.serving_changed.set()
        self._wake()

    # --- dispatch -----------------------------------------------------------------------------

    def _wake(self) -> None:
        """Dispatch soon: once for all that happens in this turn of the loop."""
        if self._wake_handle is None and len(self._queue):
            self._wake_handle = asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._wake_handle = None
        for flight, waiting in self._dispatcher.run():
            entry = self._entries[flight.request.request_id]
            if waiting is Waiting.TOO_LATE:
                wait_s = self._estimated_wait_s(0)
                self._abandon(entry, Overloaded(waiting, admission.retry_after_s(wait_s)))
                continue
            if waiting is None or not waiting.is_starving:
                _cancel_timer(entry.patience)
                entry.patience = None
            elif entry.patience is None:
                until_s = self._clock.now() + self._config.worker_patience_s
                entry.patience = self._timers.at(until_s, partial(self._tired, entry))

    def _tired(self, entry: _Entry) -> None:
        """No worker could take this request for the whole patience, unless one came just now."""
        entry.patience = None
        waiting = self._dispatcher.why_waiting(entry.flight)
        if waiting is not None and waiting.is_starving:
            waited_s = self._config.worker_patience_s
            self._abandon(entry, NoWorkers(f"{waiting} for {waited_s:g} s"))

    # --- requests -----------------------------------------------------------------------------

    def _take_on(self, flight: Flight) -> _Entry:
        request_id, deadline_s = flight.request.request_id, flight.deadline_s
        stream = TokenStream(
            request_id,
            lambda: flight.ledger.timing(self._clock.now()),
            lambda reason: self._cancelled(entry, reason),
            flight.ledger.prefill_cached_tokens,
        )
        entry = _Entry(flight, stream)
        if deadline_s is not None:
            error = DeadlineExceeded("the deadline of the request has passed")
            entry.deadline = self._timers.at(deadline_s, lambda: self._abandon(entry, error))
        self._entries[request_id] = entry
        self._idle.clear()
        self._wake()
        return entry

    def _cancelled(self, entry: _Entry, reason: str) -> None:
        self._abandon(entry, RequestCancelled(reason))

    def _abandon(self, entry: _Entry, error: PdserveError) -> None:
        self._apply(entry, entry.flight.abandon(error, self._clock.now()))

    def _apply(self, entry: _Entry, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Deliver(tokens):
                    entry.stream.put(*tokens)
                case CancelLeg():
                    self._dispatcher.cancel(entry.flight, action)
                case BlockWorker(worker):
                    if (session := self._pool.session(worker)) is not None:
                        session.block()
                case BarPair(pair):
                    until_s = self._pool.barred.bar(pair, self._clock.now())
                    self._timers.at(until_s, self._wake)
                case ClearPair(pair):
                    self._pool.barred.clear(pair)
                case Requeue(cause):
                    self._requeue(entry, cause)
                case End(error):
                    self._end(entry, error)

    def _requeue(self, entry: _Entry, cause: str) -> None:
        flight = entry.flight
        self._dispatcher.failed(flight, cause)
        self._queue.put_back(flight)
        self._wake()
        logger.info(
            "requeued", request=flight.request.request_id, epoch=flight.epoch,
            delivered=flight.num_delivered, cause=cause,
        )  # fmt: skip

    def _end(self, entry: _Entry, error: PdserveError | None) -> None:
        flight = entry.flight
        if error is None:
            self._growth.observe(flight.tenant, flight.num_delivered)
        elif flight not in self._queue:
            self._dispatcher.failed(flight, str(error))
        elif isinstance(error, (DeadlineExceeded, NoWorkers, Overloaded)):
            self._dispatcher.refused(flight, str(error))
        del self._entries[flight.request.request_id]
        if flight in self._queue:
            self._queue.remove(flight)
        _cancel_timer(entry.deadline)
        _cancel_timer(entry.patience)
        entry.stream.end(error, drop_buffered=isinstance(error, RequestCancelled))
        if not self._entries:
            self._idle.set()
        self._wake()
        _tell_end(flight, flight.ledger.timing(self._clock.now()), error)

    def _unused_id(self, wanted: RequestId) -> RequestId:
        """``wanted``, or a variant of it while another request of that id holds anything."""
        candidate = wanted
        for number in itertools.count(2):
            if candidate not in self._entries and not self._pool.holds(candidate):
                break
            candidate = RequestId(f"{wanted[:120]}~{number}")
        return candidate

    def _estimated_wait_s(self, num_prompt_tokens: int) -> float | None:
        """Until the first token of a request of that length, were it last in the queue."""
        views = admission.prompt_workers(
            self._pool.views(), self._config.used_roles[0], self._config.needed_roles[0]
        )
        ahead = sum(view.uncomputed_tokens for view in views)
        ahead += self._queue.num_prompt_tokens
        return admission.estimated_wait_s(
            ahead + num_prompt_tokens, len(views), self._speed.tokens_per_s
        )


def _tell_end(flight: Flight, timing: RequestTiming, error: PdserveError | None) -> None:
    """The one line of a request at the usual level: what it was, where it ran, how long it took."""
    logger.info(
        "request_ended",
        request=flight.request.request_id,
        error=None if error is None else error.code,
        prompt_tokens=timing.num_prompt_tokens,
        tokens=flight.num_delivered,
        ttft_s=timing.ttft_s if flight.num_delivered else None,
        total_s=timing.total_s,
        dispatches=flight.epoch,
        prefill=timing.prefill_worker or None,
        decode=timing.decode_worker or None,
    )


def _request_of(event: LegEvent) -> RequestId:
    match event:
        case FirstToken(token):
            return token.request_id
        case Tokens(tokens):
            return tokens[0].request_id if tokens else RequestId("")
        case _:
            return event.request_id


def _worker_entry(session: WorkerSession) -> WorkerEntry:
    hello = session.hello
    return WorkerEntry(
        worker_id=hello.worker_id,
        incarnation=hello.incarnation,
        role=hello.role,
        device=hello.device,
        peer=session.peer,
        limits=hello.limits,
        status=session.status,
        endpoints=hello.endpoints,
        num_legs=session.num_legs,
        draining=session.is_draining,
        silent=session.is_silent,
    )


def _cancel_timer(timer: Timer | None) -> None:
    if timer is not None:
        timer.cancel()
