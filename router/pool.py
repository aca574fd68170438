"""The workers that have joined: greeting, loss, and what the policy sees of them.

A worker joins by dialling; ``serve`` is its session from Hello to the end. Whatever ends a session
(broken link, silence, a hung step, a newer incarnation, goodbye), its loss is told to the observer
once, at once. It does not know requests (router.py) nor what carries the links.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Protocol
from uuid import uuid4

from pdserve.clock import Clock
from pdserve.errors import (
    IncompatibleWorker,
    PdserveError,
    PeerUnreachable,
    ProtocolError,
    ShuttingDown,
    WorkerLost,
)
from pdserve.links import RouterLink
from pdserve.log import event_log
from pdserve.messages import (
    PROTOCOL_VERSION,
    FromWorker,
    Hello,
    LegEvent,
    Met,
    Peer,
    StepReport,
)
from pdserve.prepared import kv_fingerprint
from pdserve.types import ModelInfo, RequestId, Role, WorkerId
from router.barred_pairs import BarredPairs
from router.config import RouterConfig
from router.fleet import Fleet, WorkerRef, WorkerView
from router.known_caches import KnownCaches
from router.kv_pairs import KvPairs
from router.refused_workers import RefusedWorkers
from router.session import SessionEnd, WorkerSession
from router.timers import Timers

logger = event_log(__name__)


class PoolObserver(Protocol):
    """What the pool tells the router. Called on the event loop; must return at once."""

    def worker_event(self, session: WorkerSession, event: LegEvent) -> None: ...

    def worker_lost(self, session: WorkerSession, end: SessionEnd) -> None: ...

    def workers_changed(self) -> None:
        """A worker joined, left or began to drain."""

    def pool_changed(self) -> None:
        """A worker reported: something may be dispatched now."""


class WorkerPool:
    def __init__(
        self,
        config: RouterConfig,
        model: ModelInfo,
        clock: Clock,
        timers: Timers,
        observer: PoolObserver,
    ) -> None:
        self.router_id = f"router-{uuid4().hex[:8]}"
        self.barred = BarredPairs(config.pair_bar_s, config.max_pair_bar_s)
        self._config = config
        self._model = model
        self._clock = clock
        self._timers = timers
        self._observer = observer
        self._numbers = itertools.count(1)
        self._sessions: dict[WorkerId, WorkerSession] = {}
        self.refused = RefusedWorkers()
        self.caches = KnownCaches(config.prefix_index_blocks)
        self.pairs = KvPairs()
        self._fleet = Fleet()
        self._num_serving = 0
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        self._closing = asyncio.Event()

    # --- what there is ------------------------------------------------------------------------

    def sessions(self) -> tuple[WorkerSession, ...]:
        return tuple(self._sessions.values())

    def views(self) -> list[WorkerView]:
        return [session.view() for session in self._sessions.values()]

    def fleet(self) -> Fleet:
        """The views as columns; the same object, renewed, at each call."""
        self._fleet.refresh(self.views())
        return self._fleet

    def session(self, ref: WorkerRef) -> WorkerSession | None:
        """The session of that very ref, if it still lives."""
        session = self._sessions.get(ref.worker_id)
        return session if session is not None and session.ref == ref else None

    @property
    def num_legs(self) -> int:
        """Legs, of all workers, that still hold something."""
        return sum(session.num_legs for session in self._sessions.values())

    def observe_exposed(self, prefill: WorkerId, exposed_s: float, num_tokens: int) -> None:
        """KV from a prefill worker was verified so long after its first token came."""
        session = self._sessions.get(prefill)
        if session is not None and num_tokens > 0:
            session.observe_exposed(exposed_s, num_tokens)

    def holds(self, request_id: RequestId) -> bool:
        """Whether some worker still has a leg of this request."""
        return any(session.holds(request_id) for session in self._sessions.values())

    # --- sessions -----------------------------------------------------------------------------

    async def serve(self, link: RouterLink) -> None:
        """One session, from its first message to its end. Never raises for a peer's fault."""
        self._num_serving += 1
        self._all_ended.clear()
        try:
            hello = await self._greet(link)
            if hello is None:
                return
            session = self._join(hello, link)
            end = SessionEnd(ProtocolError("the session failed at the router"), died=True)
            try:
                end = await session.run()
            finally:
                self._lose(session, end)
                await session.close_link(end)
        finally:
            self._num_serving -= 1
            if self._num_serving == 0:
                self._all_ended.set()

    async def close(self) -> None:
        """End every session; returns when all are ended."""
        self._closing.set()
        for session in self.sessions():
            self._lose(session, SessionEnd(ShuttingDown("the router stops"), died=False))
        await self._all_ended.wait()

    def reported(self, session: WorkerSession, report: StepReport) -> None:
        """A report came: events in order, then the status, then the queue (protocol section 1)."""
        if session.is_closed:
            return
        session.begin_report()
        if report.cache is not None and not self.caches.changed(session.ref, report.cache):
            session.resend_cache()
        for event in report.events:
            if isinstance(event, Met):
                self._met(session, event)
                continue
            if (ended := session.settle(event)) is not None:
                self.caches.settle(session.ref, ended)
            self._observer.worker_event(session, event)
        was_draining = session.is_draining
        session.end_report(report.status)
        if session.is_draining != was_draining:
            self._observer.workers_changed()
        if report.status.step_age_s > self._config.worker_loss_s:
            age_s = report.status.step_age_s
            self._lose(session, SessionEnd(WorkerLost(f"hung: step of {age_s:.1f} s"), died=True))
        self._observer.pool_changed()

    async def _greet(self, link: RouterLink) -> Hello | None:
        """The Hello of a worker that fits; None after closing the link of another."""
        hello: FromWorker | None = None
        try:
            hello = await self._first_message(link)
            if self._closing.is_set():  # since the Hello came: nobody would end this session
                raise ShuttingDown("the router stops")
            if not isinstance(hello, Hello):
                raise ProtocolError(f"the first message is a {type(hello).__name__}, not Hello")
            self._check(hello)
            return hello
        except (ProtocolError, ShuttingDown) as error:
            level = logging.INFO if isinstance(error, ShuttingDown) else logging.WARNING
            logger.at(
                level, "worker_refused", peer=link.peer, error=error, next=error.next_step or None
            )
            if isinstance(error, ProtocolError):
                self.refused.refused(hello, link.peer, error)
            await link.refuse(error)
        except PdserveError as error:  # the carrier's word for a link that broke
            logger.warning("greeting_broken", peer=link.peer, error=error)
        await link.close()
        return None

    async def _first_message(self, link: RouterLink) -> FromWorker:
        receive = asyncio.ensure_future(link.receive())
        closing = asyncio.ensure_future(self._closing.wait())
        timeout_s = self._config.hello_timeout_s
        try:
            await asyncio.wait(
                {receive, closing}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if closing.done():
                raise ShuttingDown("the router stops")
            if not receive.done():
                raise ProtocolError(f"no Hello within {timeout_s:g} s")
            return receive.result()
        finally:
            receive.cancel()
            closing.cancel()
            await asyncio.wait({receive, closing})

    def _check(self, hello: Hello) -> None:
        """Raises:
        IncompatibleWorker: another protocol version, model or KV layout; names the field.
        """
        if hello.protocol_version != PROTOCOL_VERSION:
            raise IncompatibleWorker(
                f"protocol_version is {hello.protocol_version}, the router speaks"
                f" {PROTOCOL_VERSION}"
            )
        if not self._is_served(hello.model_fingerprint):
            raise IncompatibleWorker(
                f"model_fingerprint of {hello.model_name} is {hello.model_fingerprint}, the"
                f" router serves {self._model.name} with {self._model.fingerprint}"
                f"{self._advice(hello)}"
            )
        if self._config.is_colocated:
            return
        for other in self._sessions.values():
            if other.role is hello.role or other.ref.worker_id == hello.worker_id:
                continue
            _check_codings(hello, other.hello)
            if (field := _obstacle(hello, other.hello)) is not None:
                raise IncompatibleWorker(
                    f"layout.{field} is {getattr(hello.layout, field)}, that of"
                    f" {other.role} worker {other.ref.worker_id} is"
                    f" {getattr(other.hello.layout, field)}"
                )

    def _is_served(self, fingerprint: str) -> bool:
        served = self._model.fingerprint
        if self._config.allows_mixed_weights:
            return kv_fingerprint(fingerprint) == kv_fingerprint(served)
        return fingerprint == served

    def _advice(self, hello: Hello) -> str:
        is_near = kv_fingerprint(hello.model_fingerprint) == kv_fingerprint(self._model.fingerprint)
        return "; other weights of the same shape: --mixed-weights allow" if is_near else ""

    def _join(self, hello: Hello, link: RouterLink) -> WorkerSession:
        older = self._sessions.get(hello.worker_id)
        if older is not None:
            error = WorkerLost(f"replaced by incarnation {hello.incarnation}")
            self._lose(older, SessionEnd(error, died=True))
        ref = WorkerRef(hello.worker_id, hello.incarnation, next(self._numbers))
        session = WorkerSession(ref, hello, link, self._clock, self)
        self._sessions[hello.worker_id] = session
        self.caches.join(ref)
        self.refused.joined(hello.worker_id)
        session.welcome(self.router_id, self._config.heartbeat_s)
        self._watch(session)
        logger.info(
            "worker_joined", worker=hello.worker_id, role=hello.role, incarnation=hello.incarnation,
            peer=link.peer, device=hello.device,
        )  # fmt: skip
        self._introduce(session)
        self._observer.workers_changed()
        return session

    def _introduce(self, session: WorkerSession) -> None:
        """Decode workers learn where KV is before a request does."""
        if self._config.is_colocated:
            return
        if session.role is Role.PREFILL:
            newcomer = (_peer_of(session),)
            for other in self._sessions.values():
                if other.role is Role.DECODE:
                    other.meet(newcomer)
        elif peers := tuple(
            _peer_of(each) for each in self._sessions.values() if each.role is Role.PREFILL
        ):
            session.meet(peers)

    def _met(self, session: WorkerSession, event: Met) -> None:
        prefill = self._sessions.get(event.worker_id)
        if prefill is None or prefill.ref.incarnation != event.incarnation:
            return
        if event.transport:
            pair = (event.worker_id, session.ref.worker_id)
            self.pairs.met(pair, event.transport, event.bytes_per_s, event.num_bytes)
            logger.info(
                "kv_way_found", prefill=pair[0], decode=pair[1], transport=event.transport,
                gb_per_s=f"{event.bytes_per_s / 1e9:.2f}" if event.bytes_per_s else None,
                mb=f"{event.num_bytes / 1e6:.1f}" if event.num_bytes else None,
            )  # fmt: skip
            return
        self.barred.bar((event.worker_id, session.ref.worker_id), self._clock.now())
        logger.warning(
            "kv_endpoint_unreachable", prefill=event.worker_id, decode=session.ref.worker_id,
            error=event.detail, next=PeerUnreachable.next_step,
        )  # fmt: skip

    def _watch(self, session: WorkerSession) -> None:
        """One timer a session, moved on when it finds that something came meanwhile."""
        if session.is_closed:
            return
        loss_s = self._config.worker_loss_s
        until_s = session.silent_until_s(loss_s)
        if until_s > self._clock.now():
            again_s = session.look(self._config.heartbeat_s)
            self._timers.at(min(again_s, until_s), lambda: self._watch(session))
        else:
            error = WorkerLost(f"silent for {loss_s:g} s")
            self._lose(session, SessionEnd(error, died=True))

    def _lose(self, session: WorkerSession, end: SessionEnd) -> None:
        if session.is_closed:
            return
        session.close(end)
        del self._sessions[session.ref.worker_id]
        self.caches.leave(session.ref)
        self.barred.forget(session.ref.worker_id)
        self.pairs.forget(session.ref.worker_id)
        # A worker that said goodbye and a router that stops end a session on purpose.
        logger.at(
            logging.WARNING if end.died else logging.INFO, "worker_lost",
            worker=session.ref.worker_id, incarnation=session.ref.incarnation, error=end.error,
        )  # fmt: skip
        self._observer.worker_lost(session, end)
        self._observer.workers_changed()


def _peer_of(session: WorkerSession) -> Peer:
    ref, hello = session.ref, session.hello
    return Peer(ref.worker_id, ref.incarnation, hello.endpoints, hello.layout)


def _obstacle(one: Hello, other: Hello) -> str | None:
    """Field of the layout by which the one's KV cannot go from prefill to decode, or None."""
    prefill, decode = (one, other) if one.role is Role.PREFILL else (other, one)
    return prefill.layout.first_obstacle(decode.layout)


def _check_codings(one: Hello, other: Hello) -> None:
    """Raises IncompatibleWorker: the decode worker asks for KV that the prefill one cannot send."""
    prefill, decode = (one, other) if one.role is Role.PREFILL else (other, one)
    for coding in decode.kv_codings:
        if coding not in prefill.kv_codings:
            raise IncompatibleWorker(
                f"kv_codings: decode worker {decode.worker_id} asks for {coding}, prefill worker"
                f" {prefill.worker_id} sends {', '.join(('exact', *prefill.kv_codings))}"
            )
