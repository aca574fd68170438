"""The prefill worker: prompts in, first tokens out, KV held for whoever has the ticket.

    submit -> admit or Busy -> (reader opens) -> chunks, exported as they finish -> first token
           -> commit -> Ack -> ended

A WorkerRole for its sessions and a StepPlanner for its engine loop; which prompts compute is
scheduler.py's decision, moving KV the exporter's work. It never retries and knows no router. Each
leg with a ticket has one task that waits for what its reader does. docs/protocol.md 3 and 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace

from engine.block_pool import BlockPool
from engine.loop import EngineLoop, StepTiming
from engine.measured_cost import MeasuredCost
from engine.prefix_cache import build_prefix_cache
from engine.sequence import Sequence, finish_reason
from engine.step import SampledToken, StepRow, StepRunner
from kvtransfer.exporter import Export, Exporter, ExportOutcome
from kvtransfer.messages import FirstTokenInfo
from pdserve.clock import Clock
from pdserve.errors import (
    PdserveError,
    PeerSilent,
    ProtocolError,
    TicketExpired,
    TicketUnknown,
)
from pdserve.log import event_log
from pdserve.messages import Admitted, Busy, Ended, Failed, Hello, Peer, Submit
from pdserve.roles import CacheFeed, EventSink
from pdserve.tracing import Tracer
from pdserve.types import Leg, RequestId, TokenEvent, WorkerStatus
from prefill_worker.admission import find_fault
from prefill_worker.config import PrefillConfig
from prefill_worker.leg import SCHEDULABLE, LegState, PrefillLeg
from prefill_worker.load import load_of
from prefill_worker.scheduler import plan_prefill
from prefill_worker.spans import record_prefill

_log = event_log(__name__)


class PrefillWorker:
    """All legs of one prefill worker. ``hello`` is what it tells routers about itself."""

    def __init__(
        self,
        config: PrefillConfig,
        hello: Hello,
        runner: StepRunner,
        pool: BlockPool,
        exporter: Exporter,
        clock: Clock,
        tracer: Tracer | None = None,
    ) -> None:
        self.hello = hello
        self.loop = EngineLoop(runner, self, clock)
        self._chunk_tokens = config.engine.chunk_tokens
        self._step_tokens = config.step_tokens or config.engine.chunk_tokens
        self._open_timeout_s = config.transfer.open_timeout_s
        self._eos_token_ids = runner.eos_token_ids
        self._pool = pool
        self._cache = build_prefix_cache(
            pool, runner.layout.block_size, hello.model_fingerprint,
            enabled=config.engine.prefix_cache == "on",
        )  # fmt: skip
        self._exporter = exporter
        self._clock = clock
        self._tracer = tracer or Tracer()
        self._legs: dict[RequestId, PrefillLeg] = {}
        self._num_returning = 0  # ended, blocks still pinned by the running step or a sender
        self._num_admitted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._costs = MeasuredCost()
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    # --- WorkerRole ---------------------------------------------------------------------------

    def submit(self, submit: Submit, sink: EventSink) -> None:
        """See ``WorkerRole``. Raises ProtocolError for a leg that is not a prefill leg."""
        if submit.leg is not Leg.PREFILL:
            raise ProtocolError(f"{submit.leg} leg submitted to a prefill worker")
        known = self._legs.get(submit.attempt.request.request_id)
        if known is not None:
            if known.epoch >= submit.attempt.epoch or known.sink is not sink:
                self._refuse(submit, sink)
                return
            if self._rearm(known, submit):
                return
            self._end(known, "replaced by a later attempt")
        self._admit_or_refuse(submit, sink)

    def cancel(self, request_id: RequestId, epoch: int, reason: str, sink: EventSink) -> None:
        leg = self._legs.get(request_id)
        if leg is not None and leg.epoch <= epoch and leg.sink is sink:
            self._end(leg, f"cancelled: {reason}")

    def meet(self, peers: tuple[Peer, ...], sink: EventSink) -> None:
        raise ProtocolError("a prefill worker reads no KV: Meet is for decode workers")

    def session_ended(self, sink: EventSink) -> None:
        for leg in [leg for leg in self._legs.values() if leg.sink is sink]:
            self._end(leg, "the router's session ended")

    def status(self) -> WorkerStatus:
        return replace(
            load_of(self._legs.values()),
            step=self.loop.num_steps,
            step_age_s=self.loop.step_age_s,
            total_blocks=self._pool.num_blocks,
            free_blocks=self._pool.num_free,
            cached_blocks=self._pool.num_stored,
            cost=self._costs.cost,
            draining=self._draining,
        )

    def watch_cache(self) -> CacheFeed | None:
        return self._cache.watch()

    def begin_drain(self) -> None:
        self._draining = True

    async def drained(self) -> None:
        await self._empty.wait()

    async def close(self) -> None:
        """End every leg, stop the engine loop, and wait until nothing of the legs is left."""
        self._draining = True
        for leg in list(self._legs.values()):
            self._end(leg, "the worker stops")
        await self.loop.close()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # --- StepPlanner --------------------------------------------------------------------------

    def plan(self) -> list[StepRow]:
        legs = [leg for leg in self._legs.values() if leg.state in SCHEDULABLE]
        rows: list[StepRow] = []
        for chunk in plan_prefill(
            [leg.view for leg in legs],
            budget_tokens=self._step_tokens,
            chunk_tokens=self._chunk_tokens,
        ):
            leg = legs[chunk.index]
            leg.state = LegState.COMPUTING
            rows.append(leg.next_row(chunk.num_tokens))
        return rows

    def apply(
        self, rows: list[StepRow], results: list[SampledToken | None], timing: StepTiming
    ) -> None:
        self._costs.observe(rows, timing.duration_s)
        for row, result in zip(rows, results, strict=True):
            leg = self._computed_by(row)
            if leg is not None:
                self._advance(leg, row, result, timing)
        # After tokens were reported: sinks of other prompts learn how far theirs are.
        for sink in {leg.sink for leg in self._legs.values()}:
            sink.status_changed()

    def step_failed(self, rows: list[StepRow], error: PdserveError) -> None:
        for row in rows:
            self._cache.forget(row.sequence)  # a second try must not start from it
        for row in rows:
            leg = self._computed_by(row)
            if leg is not None:
                self._fail(leg, error)

    def _computed_by(self, row: StepRow) -> PrefillLeg | None:
        """The leg of a row, unless it ended while the step ran."""
        leg = self._legs.get(row.sequence.request_id)
        return leg if leg is not None and leg.sequence is row.sequence else None

    def _advance(
        self, leg: PrefillLeg, row: StepRow, result: SampledToken | None, timing: StepTiming
    ) -> None:
        leg.sequence.num_computed = row.end
        self._cache.computed(leg.sequence)
        if leg.started_s is None:
            leg.started_s = timing.started_s
        if leg.export is not None:
            leg.export.advance(row.end)
        if result is not None:
            self._report_first_token(leg, result, timing)

    def _report_first_token(
        self, leg: PrefillLeg, sampled: SampledToken, timing: StepTiming
    ) -> None:
        sequence, index = leg.sequence, leg.attempt.first_index
        sequence.append(sampled.token_id)
        finish = finish_reason(
            sequence, sampled.token_id, self._eos_token_ids, self.hello.limits.max_model_len
        )
        token = TokenEvent(
            leg.request_id, leg.epoch, index, sampled.token_id, finish, sampled.logprobs
        )
        leg.state = LegState.COMPUTED
        leg.sink.emit(leg.record_first_token(token, timing.ended_s))
        record_prefill(self._tracer, leg, timing.ended_s)
        if leg.export is not None and finish is None:
            leg.export.commit(FirstTokenInfo(index, sampled.token_id, sampled.logprobs))
            return
        if leg.export is not None:
            leg.export.finish_early()
        self._end(leg, None)

    # --- legs ---------------------------------------------------------------------------------

    def _refuse(self, submit: Submit, sink: EventSink) -> None:
        attempt = submit.attempt
        sink.emit(Busy(attempt.request.request_id, attempt.epoch, submit.leg, self._pool.num_free))

    def _admit_or_refuse(self, submit: Submit, sink: EventSink) -> None:
        fault = find_fault(submit, self.hello)
        num_tokens = 0 if fault else submit.attempt.num_context_tokens
        claim = self._cache.claim(submit.attempt, num_tokens, num_tokens - 1)
        lease = None if self._draining else claim.take()
        if lease is None:
            self._refuse(submit, sink)
            return
        sequence = Sequence(submit.attempt, lease, claim.chain)
        sequence.num_computed = self._cache.num_cached_tokens(lease)
        state = LegState.QUEUED if submit.ticket is None else LegState.WAITING
        leg = PrefillLeg(
            submit, sink, self._num_admitted, sequence, state, self._clock.now(),
            num_cached_tokens=sequence.num_computed,
        )  # fmt: skip
        self._num_admitted += 1
        self._enter(leg)
        if fault is not None:
            self._fail(leg, fault)
        elif submit.ticket is None:
            self.loop.wake()
        else:
            export = self._exporter.offer(submit.ticket, lease, num_tokens)
            if sequence.num_computed:
                export.advance(sequence.num_computed)
            self._watch(leg, export)

    def _rearm(self, old: PrefillLeg, submit: Submit) -> bool:
        """Give what ``old`` holds to a leg of a later epoch. False: it cannot be had any more."""
        if old.export is None or submit.ticket is None or not old.inherits(submit):
            return False
        if find_fault(submit, self.hello) is not None or not old.export.rearm(submit.ticket):
            return False
        leg = old.successor(submit)
        self._leave(old)
        old.sink.emit(Ended(old.request_id, old.epoch, Leg.PREFILL))
        self._enter(leg)
        self._watch(leg, old.export)
        if leg.first_token is not None:
            leg.sink.emit(leg.first_token)
        return True

    def _enter(self, leg: PrefillLeg) -> None:
        self._legs[leg.request_id] = leg
        self._empty.clear()
        leg.sink.emit(Admitted(leg.request_id, leg.epoch, Leg.PREFILL))

    def _leave(self, leg: PrefillLeg) -> None:
        leg.state = LegState.ENDED
        del self._legs[leg.request_id]
        if leg.watch is not None and leg.watch is not asyncio.current_task():
            leg.watch.cancel()

    def _fail(self, leg: PrefillLeg, error: PdserveError) -> None:
        _log.info("prefill_leg_failed", request=leg.request_id, epoch=leg.epoch, code=error.code)
        if leg.first_token is None:
            record_prefill(self._tracer, leg, self._clock.now(), error.code)
        leg.sink.emit(Failed(leg.request_id, leg.epoch, Leg.PREFILL, error.code, str(error)))
        self._end(leg, str(error))

    def _end(self, leg: PrefillLeg, refusal: str | None) -> None:
        """Let go of everything; Ended follows at once or when the last pin is gone.

        ``refusal`` is what a reader is told, now or later; None: it has all it needs.
        """
        self._leave(leg)
        if leg.export is not None and refusal is not None:
            leg.export.close(TicketUnknown.code, refusal)
        lease = leg.sequence.lease
        lease.release()
        self._num_returning += 1
        if lease.is_free:
            self._blocks_back(leg)
        else:
            self._start(self._await_blocks(leg))

    async def _await_blocks(self, leg: PrefillLeg) -> None:
        await leg.sequence.lease.freed()
        self._blocks_back(leg)

    def _blocks_back(self, leg: PrefillLeg) -> None:
        self._num_returning -= 1
        leg.sink.emit(Ended(leg.request_id, leg.epoch, Leg.PREFILL))
        if not self._legs and self._num_returning == 0:
            self._empty.set()

    # --- readers ------------------------------------------------------------------------------

    def _watch(self, leg: PrefillLeg, export: Export) -> None:
        leg.export = export
        leg.watch = self._start(self._follow_reader(leg, export))

    async def _follow_reader(self, leg: PrefillLeg, export: Export) -> None:
        """From the offer to the end of the ticket, or until the leg ends otherwise (cancelled)."""
        try:
            async with asyncio.timeout(self._open_timeout_s):
                await export.wait_opened()
        except TimeoutError:
            self._fail(leg, PeerSilent(f"no reader within {self._open_timeout_s:g} s"))
            return
        if leg.state is LegState.WAITING and not export.has_ended:
            leg.state = LegState.QUEUED
            self.loop.wake()
        outcome = await export.outcome()
        if leg.state is LegState.ENDED:
            return
        if outcome is ExportOutcome.EXPIRED:
            self._fail(leg, TicketExpired("the reader did not acknowledge in time"))
        else:
            self._end(leg, None)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
