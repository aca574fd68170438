"""A worker without an engine: the test says what it answers, over an in-process link.

It keeps track of its legs, so that a test can ask at the end whether any was forgotten: every leg
must have been ended, cancelled, or have ended by itself. Nothing here waits for time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pdserve.errors import PdserveError
from pdserve.links import RouterLink, WorkerLink, link_pair
from pdserve.messages import (
    PROTOCOL_VERSION,
    Admitted,
    AlreadyCommitted,
    Busy,
    CacheChanges,
    Cancel,
    Committed,
    Ended,
    Failed,
    FirstToken,
    FromWorker,
    Goodbye,
    Hello,
    KvFailed,
    Meet,
    Peer,
    StepReport,
    Submit,
    Tokens,
    ToWorker,
    Welcome,
    WorkerEvent,
)
from pdserve.types import (
    DecodeTiming,
    Endpoint,
    FinishReason,
    KVLayout,
    KvTiming,
    Leg,
    PrefillTiming,
    RequestId,
    Role,
    TicketId,
    TokenEvent,
    TokenLogprobs,
    WorkerId,
    WorkerLimits,
    WorkerStatus,
)

FINGERPRINT = "fp-test"
LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_size=4, dtype="float32")
LIMITS = WorkerLimits(
    max_model_len=256, total_blocks=64, chunk_tokens=16, max_running=8, vocab_size=320
)

MessageT = TypeVar("MessageT", bound=ToWorker)


async def settle(num_turns: int = 30) -> None:
    """Let everything that can go on go on."""
    for _ in range(num_turns):
        await asyncio.sleep(0)


def make_hello(worker_id: str, role: Role, **changes: object) -> Hello:
    hello = Hello(
        protocol_version=PROTOCOL_VERSION,
        worker_id=WorkerId(worker_id),
        incarnation="a",
        role=role,
        model_name="test",
        model_fingerprint=FINGERPRINT,
        layout=LAYOUT,
        limits=LIMITS,
        endpoints=(Endpoint("inproc", worker_id),) if role is Role.PREFILL else (),
        device="scripted",
    )
    return replace(hello, **changes)  # type: ignore[arg-type]


@dataclass
class ScriptedLeg:
    """``state``: "asked", "open", or how it ended."""

    submit: Submit
    state: str = "asked"


@dataclass
class ScriptedWorker:
    hello: Hello
    link: WorkerLink
    far_end: RouterLink
    status: WorkerStatus
    inbox: list[ToWorker] = field(default_factory=list)
    met: list[Peer] = field(default_factory=list)
    legs: list[ScriptedLeg] = field(default_factory=list)
    refused: PdserveError | None = None  # what ended the session, as the worker sees it
    reader: asyncio.Task[None] | None = None

    @classmethod
    def connect(cls, hello: Hello) -> ScriptedWorker:
        """A link with its reader running; the caller gives ``far_end`` to the router."""
        link, far_end = link_pair()
        total = hello.limits.total_blocks
        status = WorkerStatus(total_blocks=total, free_blocks=total)
        worker = cls(hello, link, far_end, status)
        worker.reader = asyncio.create_task(worker._read())
        return worker

    async def _read(self) -> None:
        try:
            while True:
                message = await self.link.receive()
                if isinstance(message, Meet):  # joins of others come whenever they come
                    self.met.extend(message.peers)
                    continue
                self.inbox.append(message)
                match message:
                    case Submit():
                        self.legs.append(ScriptedLeg(message))
                        self.status = replace(self.status, last_submit_seq=message.submit_seq)
                    case Cancel(request_id, epoch, reason):
                        self._cancelled(request_id, epoch, reason)
        except PdserveError as error:
            self.refused = error

    def _cancelled(self, request_id: str, epoch: int, reason: str) -> None:
        for leg in self.legs:
            attempt = leg.submit.attempt
            if attempt.request.request_id == request_id and attempt.epoch <= epoch:
                leg.state = f"cancelled: {reason}"

    # --- what came ----------------------------------------------------------------------------

    def take(self, kind: type[MessageT]) -> MessageT:
        """The oldest message not taken yet, which must be of this kind."""
        assert self.inbox, f"{self.hello.worker_id} got nothing, {kind.__name__} was due"
        message = self.inbox.pop(0)
        assert isinstance(message, kind), f"{self.hello.worker_id} got {message}"
        return message

    async def take_submit(self, leg: Leg | None = None) -> Submit:
        await settle()
        submit = self.take(Submit)
        assert leg is None or submit.leg is leg
        return submit

    async def take_cancel(self, submit: Submit) -> Cancel:
        """A Cancel of just this leg."""
        await settle()
        cancel = self.take(Cancel)
        attempt = submit.attempt
        assert (cancel.request_id, cancel.epoch) == (attempt.request.request_id, attempt.epoch)
        return cancel

    async def take_welcome(self) -> Welcome:
        await settle()
        return self.take(Welcome)

    # --- what it answers ----------------------------------------------------------------------

    async def say(self, message: FromWorker) -> None:
        await self.link.send(message)
        await settle()

    async def report(self, *events: WorkerEvent, **status: object) -> None:
        self.status = replace(self.status, **status)  # type: ignore[arg-type]
        await self.say(StepReport(events, self.status))

    async def report_cache(self, changes: CacheChanges) -> None:
        await self.say(StepReport((), self.status, changes))

    async def admit(self, submit: Submit, *more: WorkerEvent) -> None:
        self._leg(submit).state = "open"
        request_id, epoch = _name(submit)
        await self.report(Admitted(request_id, epoch, submit.leg), *more)

    async def busy(self, submit: Submit) -> None:
        self._leg(submit).state = "busy"
        request_id, epoch = _name(submit)
        await self.report(Busy(request_id, epoch, submit.leg, free_blocks=0))

    async def first_token(
        self,
        submit: Submit,
        token_id: int,
        finish: FinishReason | None = None,
        timing: PrefillTiming | None = None,
    ) -> None:
        if finish is not None:
            self._leg(submit).state = "finished"
        index = submit.attempt.first_index
        event = token_event(submit, index, token_id, finish)
        await self.report(FirstToken(event, timing or PrefillTiming()))

    async def commit(self, submit: Submit, timing: KvTiming | None = None) -> None:
        request_id, epoch = _name(submit)
        await self.report(Committed(request_id, _ticket(submit), epoch, timing or KvTiming()))

    async def tokens(
        self,
        submit: Submit,
        first_index: int,
        token_ids: list[int],
        finish: FinishReason | None = None,
        timing: DecodeTiming | None = None,
    ) -> None:
        """Tokens from ``first_index`` on; ``finish`` goes with the last one."""
        if finish is not None:
            self._leg(submit).state = "finished"
        last = len(token_ids) - 1
        events = tuple(
            token_event(submit, first_index + i, token_id, finish if i == last else None)
            for i, token_id in enumerate(token_ids)
        )
        await self.report(Tokens(events, timing))

    async def kv_failed(self, submit: Submit, code: str = "frame_corrupt") -> None:
        self._leg(submit).state = "failed"
        request_id, epoch = _name(submit)
        await self.report(
            KvFailed(request_id, _ticket(submit), epoch, code, "scripted"),
            Ended(request_id, epoch, submit.leg),
        )

    async def fail(self, submit: Submit, code: str, detail: str = "scripted") -> None:
        self._leg(submit).state = "failed"
        request_id, epoch = _name(submit)
        await self.report(
            Failed(request_id, epoch, submit.leg, code, detail),
            Ended(request_id, epoch, submit.leg),
        )

    async def already_committed(self, submit: Submit, committed_epoch: int) -> None:
        self._leg(submit).state = "refused"
        request_id, epoch = _name(submit)
        await self.report(AlreadyCommitted(request_id, epoch, committed_epoch))

    async def end(self, submit: Submit) -> None:
        self._leg(submit).state = "ended"
        request_id, epoch = _name(submit)
        await self.report(Ended(request_id, epoch, submit.leg))

    async def goodbye(self) -> None:
        """It leaves by its own will; what it still had is gone with it."""
        self._drop_legs()
        await self.say(Goodbye("drained"))

    async def die(self) -> None:
        """The session breaks without a word, and its legs are gone with it."""
        self._drop_legs()
        await self.link.close()
        await settle()

    # --- the end ------------------------------------------------------------------------------

    async def end_all(self) -> None:
        """Say Ended for every leg that may end; a leg that nobody stopped is an error."""
        if self.refused is not None:
            return  # its session has ended, and with it all its legs
        forgotten = [leg for leg in self.legs if leg.state in ("asked", "open")]
        assert not forgotten, f"{self.hello.worker_id}: nobody stopped {forgotten}"
        keys = [(*_name(leg.submit), leg.submit.leg) for leg in self.legs]
        await self.report(*(Ended(*key) for key in keys))

    async def close(self) -> None:
        await self.link.close()
        if self.reader is not None:
            await self.reader

    def _drop_legs(self) -> None:
        for leg in self.legs:
            leg.state = "gone"

    def _leg(self, submit: Submit) -> ScriptedLeg:
        return next(leg for leg in self.legs if leg.submit is submit)


def token_event(
    submit: Submit,
    index: int,
    token_id: int,
    finish: FinishReason | None = None,
    logprobs: TokenLogprobs | None = None,
) -> TokenEvent:
    request_id, epoch = _name(submit)
    return TokenEvent(request_id, epoch, index, token_id, finish, logprobs)


def _name(submit: Submit) -> tuple[RequestId, int]:
    return submit.attempt.request.request_id, submit.attempt.epoch


def _ticket(submit: Submit) -> TicketId:
    assert submit.ticket is not None
    return submit.ticket.ticket_id
