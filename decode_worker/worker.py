"""The decode worker: tickets in, tokens out; in colocated mode, prompts in.

    submit -> admit or Busy -> intake task (KV read) -> committed -> running <-> parked -> ended
                            -> prefilling (colocated) ->

A WorkerRole for its sessions and a StepPlanner for its engine loop; decisions are scheduler.py's,
block promises room.py's, the KV read intake.py's. It never retries and knows no router.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf

from decode_worker.config import DecodeConfig
from decode_worker.forking import ForkClaim, Forking
from decode_worker.intake import Intake
from decode_worker.leg import OWNED, DecodeLeg, LegCounts, LegState
from decode_worker.meeting import Meeting
from decode_worker.planning import StepAssembler
from decode_worker.reporting import report_tokens
from decode_worker.room import ArrivalRoom
from decode_worker.spans import record_decode, record_own_prefill, record_transfer
from engine.block_pool import BlockPool
from engine.loop import EngineLoop, StepTiming
from engine.measured_cost import MeasuredCost
from engine.prefix_cache import ContextClaim, build_prefix_cache
from engine.sequence import Sequence
from engine.step import SampledToken, StepRow, StepRunner
from kvtransfer.importer import Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.rate_probe import RateProbe
from pdserve.clock import Clock
from pdserve.errors import EngineFailure, PdserveError
from pdserve.log import event_log
from pdserve.messages import (
    Admitted,
    AlreadyCommitted,
    Busy,
    Ended,
    Failed,
    Hello,
    Peer,
    Submit,
)
from pdserve.roles import CacheFeed, EventSink
from pdserve.tracing import Tracer
from pdserve.types import KvTiming, Leg, RequestId, WorkerStatus

logger = event_log(__name__)


class DecodeWorker:
    """All legs of one decode worker. ``hello`` is what it tells routers about itself."""

    def __init__(
        self,
        config: DecodeConfig,
        hello: Hello,
        runner: StepRunner,
        pool: BlockPool,
        importer: Importer,
        clock: Clock,
        tracer: Tracer | None = None,
    ) -> None:
        self.hello = hello
        self._max_running = config.max_running
        self._pool = pool
        self._clock = clock
        self._tracer = tracer or Tracer()
        self._eos_token_ids = runner.eos_token_ids
        self._layout = runner.layout
        self._legs: dict[RequestId, DecodeLeg] = {}  # oldest first
        self._counts = LegCounts()
        self._returning: list[DecodeLeg] = []  # ended, blocks still pinned by the running step
        self._next_order = 0
        self._draining = False
        self._costs = MeasuredCost()
        self._empty = asyncio.Event()
        self._empty.set()
        self._cache = build_prefix_cache(
            pool, runner.layout.block_size, hello.model_fingerprint,
            enabled=config.engine.prefix_cache == "on",
        )  # fmt: skip
        self._forking = Forking(pool, runner.buffers, enabled=config.engine.prefix_cache == "on")
        self._room = ArrivalRoom(pool)
        budget = IntakeBudget(config.transfer.intake_bytes_per_step)
        self._intake = Intake(importer, self._room, self, budget)
        self._meeting = Meeting(
            importer, RateProbe(importer, clock, config.transfer, hello.incarnation)
        )
        self._assembler = StepAssembler(
            runner.buffers, pool, self._cache, chunk_tokens=config.engine.chunk_tokens,
            step_tokens=config.step_tokens, copies=config.parking == "copy",
        )  # fmt: skip
        self.loop = EngineLoop(runner, self, clock)

    # --- WorkerRole ---------------------------------------------------------------------------

    def submit(self, submit: Submit, sink: EventSink) -> None:
        request_id = submit.attempt.request.request_id
        epoch = submit.attempt.epoch
        known = self._legs.get(request_id)
        if known is not None:
            if known.state in OWNED and known.epoch < epoch and known.sink is sink:
                sink.emit(AlreadyCommitted(request_id, epoch, known.epoch))
                return
            if known.epoch >= epoch:
                self._refuse(submit, sink)
                return
            self.end(known)
        claim = self._claim(submit)
        if not self._has_room(submit, claim):
            self._refuse(submit, sink)
            return
        self._admit(submit, claim, sink)

    def cancel(self, request_id: RequestId, epoch: int, reason: str, sink: EventSink) -> None:
        leg = self._legs.get(request_id)
        if leg is not None and leg.epoch <= epoch and leg.sink is sink:
            logger.debug("cancel", request=request_id, epoch=epoch, reason=reason)
            self.end(leg)

    def meet(self, peers: tuple[Peer, ...], sink: EventSink) -> None:
        self._meeting.meet(peers, sink)

    def session_ended(self, sink: EventSink) -> None:
        self._meeting.session_ended(sink)
        for leg in [leg for leg in self._legs.values() if leg.sink is sink]:
            self.end(leg)

    def status(self) -> WorkerStatus:
        counts = self._counts
        running_tokens = queued_tokens = 0
        for leg in self._legs.values():
            if leg.state is LegState.RUNNING:
                running_tokens += len(leg.held.token_ids)
            elif leg.state is LegState.PREFILLING:
                queued_tokens += leg.held.num_uncomputed
        return WorkerStatus(
            step=self.loop.num_steps,
            step_age_s=self.loop.step_age_s,
            total_blocks=self._pool.num_blocks,
            free_blocks=self._pool.num_free,
            cached_blocks=self._pool.num_stored,
            kv_intake_bytes=self._intake.budget.bytes_taken,
            kv_intake_waits=self._intake.budget.num_waits,
            cost=self._costs.cost,
            reserved_blocks=self._room.promised_blocks + self._reserve(),
            num_queued=counts.num_arriving
            + counts.of(LegState.COMMITTED)
            + counts.of(LegState.PREFILLING),
            queued_tokens=queued_tokens,
            num_running=counts.of(LegState.RUNNING),
            running_tokens=running_tokens,
            num_parked=counts.of(LegState.PARKED),
            draining=self._draining,
        )

    def watch_cache(self) -> CacheFeed | None:
        return self._cache.watch()

    def begin_drain(self) -> None:
        self._draining = True

    async def drained(self) -> None:
        await self._empty.wait()

    @property
    def num_legs(self) -> int:
        """Legs that still hold something here."""
        return len(self._legs) + len(self._returning)

    @property
    def num_parkings(self) -> int:
        """How often a sequence had to make room, since the start."""
        return self._assembler.num_parkings

    async def close(self) -> None:
        """End every leg and wait until nothing of them is left."""
        self._draining = True
        for leg in list(self._legs.values()):
            self.end(leg)
        await self._meeting.close()
        await self._intake.close()
        await self.loop.close()
        self._settle_returned()

    # --- StepPlanner --------------------------------------------------------------------------

    def plan(self) -> list[StepRow]:
        self._room.make_way(self._reserve())
        rows = self._assembler.assemble(self._legs.values())
        self._room.serve(self.reserve_for_arrivals())
        self._intake.set_idle(not rows)
        return rows

    def apply(
        self,
        rows: SequenceOf[StepRow],
        results: SequenceOf[SampledToken | None],
        timing: StepTiming,
    ) -> None:
        self._costs.observe(rows, timing.duration_s)
        for row, result in zip(rows, results, strict=True):
            leg = self._legs.get(row.sequence.request_id)
            if leg is None or leg.sequence is not row.sequence:
                continue  # ended while the step ran
            self._advance(leg, row, result, timing)
        self._intake.step_ended()
        self._settle_returned()
        self.blocks_came_back()

    def step_failed(self, rows: SequenceOf[StepRow], error: PdserveError) -> None:
        for row in rows:
            self._cache.forget(row.sequence)  # a second try must not start from it
        self._room.make_way(self._pool.num_blocks + 1)  # nor hold what is forgotten now
        for row in rows:
            leg = self._legs.get(row.sequence.request_id)
            if leg is not None and leg.sequence is row.sequence:
                self.fail(leg, error.code, str(error))
        self._settle_returned()
        self.blocks_came_back()

    # --- legs (called by intake.py too) -------------------------------------------------------

    def committed(self, leg: DecodeLeg, sequence: Sequence, timing: KvTiming) -> None:
        """Verified KV is here; the next step may run it."""
        self._cache.computed(sequence)
        leg.sequence = sequence
        leg.become(LegState.COMMITTED)
        leg.ready_s = self._clock.now()
        record_transfer(self._tracer, leg, timing, leg.ready_s)
        self.loop.wake()

    def fail(self, leg: DecodeLeg, code: str, detail: str) -> None:
        """Report that a leg cannot go on, and end it; does nothing for one that has ended."""
        if leg.state is LegState.ENDED:
            return
        leg.sink.emit(Failed(leg.request_id, leg.epoch, leg.kind, code, detail))
        self.end(leg, code)

    def end(self, leg: DecodeLeg, error: str = "") -> None:
        """Let go of everything; Ended follows when the blocks are really back."""
        if leg.state is LegState.ENDED:
            return
        record_decode(self._tracer, leg, self._clock.now(), error)
        leg.become(LegState.ENDED)
        del self._legs[leg.request_id]
        leg.parked = None
        self.keep_promise(leg)
        self._returning.append(leg)
        if leg.sequence is not None:
            leg.sequence.lease.release()
        if leg.task is not None and leg.task is not asyncio.current_task():
            leg.task.cancel()
        self._settle_returned()
        self.blocks_came_back()

    def keep_promise(self, leg: DecodeLeg) -> None:
        """The promise became a lease, or is not needed any more."""
        if leg.promise is not None:
            self._room.take_back(leg.promise)
            leg.promise = None

    def reserve_for_arrivals(self) -> int:
        """Blocks an arriving sequence must leave; everything while a parked one waits."""
        parks = self._counts.of(LegState.PARKED)
        return self._pool.num_blocks if parks else self._reserve()

    def blocks_came_back(self) -> None:
        self._room.serve(self.reserve_for_arrivals())
        if self._counts.num_owned:
            self.loop.wake()

    def leg_task_done(self, leg: DecodeLeg) -> None:
        leg.task = None
        self._settle_returned()
        self.blocks_came_back()

    # --- inside -------------------------------------------------------------------------------

    def _refuse(self, submit: Submit, sink: EventSink) -> None:
        free = max(0, self._room.unpromised_blocks(self._reserve()))
        request_id = submit.attempt.request.request_id
        sink.emit(Busy(request_id, submit.attempt.epoch, submit.leg, free))

    def _claim(self, submit: Submit) -> ContextClaim | ForkClaim:
        """A prompt computed here samples from its last token, which is therefore never cached."""
        attempt, ticket = submit.attempt, submit.ticket
        if ticket is not None:
            return self._cache.claim(attempt, ticket.num_tokens, ticket.num_tokens)
        num_tokens = attempt.num_context_tokens
        claim = self._cache.claim(attempt, num_tokens, num_tokens - 1)
        return self._forking.claim(self._legs.values(), attempt, claim)

    def _num_extra(self, claim: ContextClaim | ForkClaim, submit: Submit) -> int:
        """Blocks beyond the context's own that its first generated token needs: none or one."""
        num_blocks = self._layout.num_blocks(submit.attempt.num_context_tokens + 1)
        return max(0, num_blocks - claim.num_blocks)

    def _has_room(self, submit: Submit, claim: ContextClaim | ForkClaim) -> bool:
        if self._draining or len(self._legs) >= self._max_running:
            return False
        need = claim.num_needed + self._num_extra(claim, submit)
        return need <= self._room.unpromised_blocks(self._reserve())

    def _reserve(self) -> int:
        """Growth of those already here, and the whole of those that had to leave for a while."""
        num_parked = self._counts.of(LegState.PARKED)
        reserve = self._counts.num_owned - num_parked
        if num_parked:
            reserve += sum(
                self._layout.num_blocks(len(leg.held.token_ids))
                for leg in self._legs.values()
                if leg.state is LegState.PARKED
            )
        return reserve

    def _admit(self, submit: Submit, claim: ContextClaim | ForkClaim, sink: EventSink) -> None:
        attempt = submit.attempt
        leg = DecodeLeg(
            submit, sink, self._next_order, LegState.OPENING, self._counts,
            submitted_s=self._clock.now(),
        )  # fmt: skip
        self._next_order += 1
        self._legs[leg.request_id] = leg
        self._empty.clear()
        sink.emit(Admitted(leg.request_id, leg.epoch, leg.kind))
        if self._layout.num_blocks(attempt.max_total_tokens) > self._pool.num_blocks:
            error = EngineFailure(f"{attempt.max_total_tokens} tokens can never fit this worker")
            self.fail(leg, error.code, str(error))
        elif leg.kind is Leg.COLOCATED:
            lease = claim.take()
            assert lease is not None, "admitted without room"
            leg.sequence = Sequence(attempt, lease, claim.chain)
            leg.num_cached_tokens = (
                claim.num_known_tokens
                if isinstance(claim, ForkClaim)
                else self._cache.num_cached_tokens(lease)
            )
            leg.sequence.num_computed = leg.num_cached_tokens
            leg.become(LegState.PREFILLING)
            self.loop.wake()
        else:
            assert isinstance(claim, ContextClaim), "a fork has no ticket"
            leg.promise = self._room.promise(claim, self._num_extra(claim, submit))
            self._intake.begin(leg)

    def _advance(
        self, leg: DecodeLeg, row: StepRow, result: SampledToken | None, timing: StepTiming
    ) -> None:
        sequence = row.sequence
        sequence.num_computed = row.end
        self._cache.computed(sequence)
        if leg.started_s is None:
            leg.started_s = timing.started_s
        if result is None:
            leg.sink.status_changed()
            return
        sequence.append(result.token_id)
        had_first = leg.kind is not Leg.COLOCATED or leg.sent_first_token
        finish = report_tokens(
            leg, result, timing, self._eos_token_ids, self.hello.limits.max_model_len
        )
        if not had_first:
            record_own_prefill(self._tracer, leg, timing)
        elif leg.first_step is None:
            leg.first_step = timing
        if finish is not None:
            self.end(leg)
        elif leg.state is LegState.PREFILLING:
            leg.become(LegState.RUNNING)

    def _settle_returned(self) -> None:
        """Report Ended for legs whose blocks and task are gone."""
        waiting: list[DecodeLeg] = []
        for leg in self._returning:
            blocks_back = leg.sequence is None or leg.sequence.lease.is_free
            if blocks_back and leg.task is None:
                leg.sequence = None
                leg.sink.emit(Ended(leg.request_id, leg.epoch, leg.kind))
            else:
                waiting.append(leg)
        self._returning = waiting
        if not self._legs and not self._returning:
            self._empty.set()
