"""One joined worker at the router: its last status, what is booked on it, messages to it.

``run`` moves messages until the session ends for whatever reason; everything else returns at once.
It does not know requests (router.py), nor who else is in the pool (pool.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from pdserve.clock import Clock
from pdserve.errors import PdserveError, ProtocolError, WorkerLost
from pdserve.links import RouterLink
from pdserve.log import event_log
from pdserve.messages import (
    Admitted,
    AlreadyCommitted,
    Busy,
    Cancel,
    Drain,
    Ended,
    FromWorker,
    Goodbye,
    Hello,
    Meet,
    Peer,
    ResendCache,
    StepReport,
    Submit,
    ToWorker,
    Welcome,
    WorkerEvent,
)
from pdserve.types import Attempt, Leg, RequestId, Role, TransferTicket, WorkerStatus
from router.bookings import Booking, Bookings, LegKey
from router.exposed import ExposedEstimate
from router.policy import WorkerRef, WorkerView
from router.silence import Silence

logger = event_log(__name__)


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """Why a session ended. ``died``: not by the worker's or the router's own will."""

    error: PdserveError
    died: bool


class SessionOwner(Protocol):
    """What a session needs of the pool."""

    def reported(self, session: WorkerSession, report: StepReport) -> None: ...


class WorkerSession:
    def __init__(
        self, ref: WorkerRef, hello: Hello, link: RouterLink, clock: Clock, owner: SessionOwner
    ) -> None:
        self.ref = ref
        self.hello = hello
        self.status = WorkerStatus(
            total_blocks=hello.limits.total_blocks, free_blocks=hello.limits.total_blocks
        )
        self.last_report_s = clock.now()
        self._link = link
        self._clock = clock
        self._owner = owner
        self._bookings = Bookings()
        self._submit_seq = 0
        self._blocked = False
        self._silence = Silence(self.last_report_s)
        self._draining = False
        self._exposed = ExposedEstimate(hello.limits.chunk_tokens)
        self._view: WorkerView | None = None  # None: something has changed
        self._outbox: asyncio.Queue[ToWorker] = asyncio.Queue()
        self._end: asyncio.Future[SessionEnd] = asyncio.get_running_loop().create_future()

    @property
    def role(self) -> Role:
        return self.hello.role

    @property
    def peer(self) -> str:
        return self._link.peer

    @property
    def num_legs(self) -> int:
        """Legs of this router that still hold something there."""
        return len(self._bookings)

    def holds(self, request_id: RequestId) -> bool:
        return self._bookings.holds(request_id)

    @property
    def is_draining(self) -> bool:
        return self._draining or self.status.draining

    @property
    def is_silent(self) -> bool:
        return self._silence.is_silent

    @property
    def is_closed(self) -> bool:
        return self._end.done()

    def view(self) -> WorkerView:
        """The same object as long as nothing has changed."""
        if self._view is None:
            self._view = self._look()
        return self._view

    def _look(self) -> WorkerView:
        num_blocks = num_tokens = num_legs = 0
        for booking in self._bookings.unseen():
            num_blocks += booking.num_blocks
            num_tokens += booking.num_tokens
            num_legs += 1
        return WorkerView(
            ref=self.ref,
            role=self.role,
            limits=self.hello.limits,
            block_size=self.hello.layout.block_size,
            status=self.status,
            unseen_blocks=num_blocks,
            unseen_tokens=num_tokens,
            unseen_legs=num_legs,
            blocked=self._blocked,
            draining=self.is_draining,
            silent=self.is_silent,
            fingerprint=self.hello.model_fingerprint,
            exposed=self._exposed.at(self._clock.now()),
        )

    def look(self, heartbeat_s: float) -> float:
        """See whether it has fallen silent; returns when to look again."""
        was_silent = self.is_silent
        again_s = self._silence.look(self._clock.now(), heartbeat_s)
        if self.is_silent != was_silent:
            self._view = None
            logger.warning(
                "worker_silent", worker=self.ref.worker_id,
                next="it gets nothing new until it reports",
            )  # fmt: skip
        return again_s

    def silent_until_s(self, loss_s: float) -> float:
        """When this worker counts as lost if nothing more comes: no report, or no answer."""
        since_s = self.last_report_s
        if (unanswered_s := self._bookings.oldest_unanswered_s) is not None:
            since_s = min(since_s, unanswered_s)
        return since_s + loss_s

    # --- to the worker ------------------------------------------------------------------------

    def welcome(self, router_id: str, heartbeat_s: float) -> None:
        self._outbox.put_nowait(Welcome(router_id, heartbeat_s))

    def submit(
        self,
        leg: Leg,
        attempt: Attempt,
        ticket: TransferTicket | None,
        *,
        num_blocks: int,
        num_tokens: int,
    ) -> LegKey:
        """Book and send. ``num_blocks`` and ``num_tokens`` are what the leg takes there."""
        self._submit_seq += 1
        self._view = None
        key = LegKey(attempt.request.request_id, attempt.epoch, leg)
        self._bookings.add(
            Booking(key, self._submit_seq, self._clock.now(), num_blocks, num_tokens)
        )
        self._outbox.put_nowait(Submit(self._submit_seq, leg, attempt, ticket))
        return key

    def cancel(self, request_id: RequestId, epoch: int, reason: str) -> None:
        self._outbox.put_nowait(Cancel(request_id, epoch, reason))

    def drain(self, grace_s: float) -> None:
        """No new work; the worker leaves when it has finished."""
        if not self._draining:
            self._draining = True
            self._view = None
            self._outbox.put_nowait(Drain(grace_s))

    def meet(self, peers: tuple[Peer, ...]) -> None:
        """Let a decode worker try where it would read KV."""
        self._outbox.put_nowait(Meet(peers))

    def block(self) -> None:
        """It answered Busy: nothing new before its next report."""
        self._blocked = True
        self._view = None

    def resend_cache(self) -> None:
        """A change of its prefix cache was missed."""
        self._outbox.put_nowait(ResendCache())

    def observe_exposed(self, exposed_s: float, num_tokens: int) -> None:
        """KV of so many tokens from there was not hidden behind computing for so long."""
        self._exposed.observe(exposed_s, num_tokens, self._clock.now())
        self._view = None

    # --- from the worker ----------------------------------------------------------------------

    def begin_report(self) -> None:
        self.last_report_s = self._clock.now()
        self._silence.heard(self.last_report_s)
        self._blocked = False
        self._view = None

    def settle(self, event: WorkerEvent) -> LegKey | None:
        """Take what an event says of bookings; the leg that holds nothing there any more."""
        ended: LegKey | None = None
        match event:
            case Admitted(request_id, epoch, leg):
                self._bookings.admitted(LegKey(request_id, epoch, leg))
            case Busy(request_id=request_id, epoch=epoch, leg=leg) | Ended(request_id, epoch, leg):
                ended = LegKey(request_id, epoch, leg)
            case AlreadyCommitted(request_id=request_id, epoch=epoch):
                ended = LegKey(request_id, epoch, Leg.DECODE)
            case _:
                pass
        if ended is not None:
            self._bookings.ended(ended)
        return ended

    def end_report(self, status: WorkerStatus) -> None:
        self.status = status
        self._bookings.seen(status.last_submit_seq)

    # --- life ---------------------------------------------------------------------------------

    def close(self, end: SessionEnd) -> None:
        """Let ``run`` end; bookings vanish. Idempotent, the first reason stays."""
        if not self._end.done():
            self._end.set_result(end)
            self._bookings.clear()

    async def run(self) -> SessionEnd:
        """Move messages until the link breaks, ``close`` is called or the worker says goodbye.

        Returns why it ended; no task of it is left then.
        """
        tasks = {
            asyncio.create_task(self._read(), name=f"session {self.ref.worker_id} read"),
            asyncio.create_task(self._write(), name=f"session {self.ref.worker_id} write"),
        }
        try:
            await asyncio.wait({*tasks, self._end}, return_when=asyncio.FIRST_COMPLETED)
            if self._end.done():
                return self._end.result()
            return next(task.result() for task in tasks if task.done())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def close_link(self, end: SessionEnd) -> None:
        if isinstance(end.error, ProtocolError):
            await self._link.refuse(end.error)
        await self._link.close()

    async def _read(self) -> SessionEnd:
        while True:
            try:
                message = await self._link.receive()
            except PdserveError as error:  # the carrier's words for a broken or nonsensical peer
                return SessionEnd(error, died=True)
            match message:
                case StepReport():
                    self._owner.reported(self, message)
                case Goodbye(reason):
                    return SessionEnd(WorkerLost(f"the worker left: {reason}"), died=False)
                case _:
                    return SessionEnd(_unexpected(message), died=True)

    async def _write(self) -> SessionEnd:
        try:
            while True:
                await self._link.send(await self._outbox.get())
        except WorkerLost as error:
            return SessionEnd(error, died=True)


def _unexpected(message: FromWorker) -> ProtocolError:
    what = "a second Hello" if isinstance(message, Hello) else f"a {type(message).__name__}"
    return ProtocolError(f"the worker sent {what} within a session")
