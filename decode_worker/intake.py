"""From an admitted leg to verified KV in its own blocks: one task a leg.

Reads the KV with kvtransfer's Importer, leases blocks through room.py, and tells the router what
came of it (Committed or KvFailed). Cancelling the task stops the read and gives the blocks back.
Never retries: that is the router's.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from decode_worker.leg import DecodeLeg, LegState
from decode_worker.room import ArrivalRoom
from engine.block_pool import BlockLease
from engine.sequence import Sequence
from kvtransfer.importer import ImportedKv, Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import FinishedAtPrefill
from pdserve.errors import EngineFailure, FrameCorrupt, PdserveError, TransferError
from pdserve.log import event_log
from pdserve.messages import Committed, KvFailed, Tokens
from pdserve.types import KvTiming, TokenEvent, TransferTicket

logger = event_log(__name__)


class LegOwner(Protocol):
    """What the intake needs of the worker."""

    def committed(self, leg: DecodeLeg, sequence: Sequence, timing: KvTiming) -> None: ...

    def fail(self, leg: DecodeLeg, code: str, detail: str) -> None: ...

    def end(self, leg: DecodeLeg) -> None: ...

    def keep_promise(self, leg: DecodeLeg) -> None: ...

    def reserve_for_arrivals(self) -> int: ...

    def leg_task_done(self, leg: DecodeLeg) -> None: ...


class Intake:
    """All KV reads of one decode worker, under one budget of bytes a step."""

    def __init__(
        self,
        importer: Importer,
        room: ArrivalRoom,
        owner: LegOwner,
        budget: IntakeBudget,
    ) -> None:
        self._importer = importer
        self._room = room
        self._owner = owner
        self.budget = budget
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, leg: DecodeLeg) -> None:
        task = asyncio.create_task(self._run(leg), name=f"intake {leg.request_id}/{leg.epoch}")
        leg.task = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finished(leg, done))

    def set_idle(self, idle: bool) -> None:
        """While no step runs, arrivals disturb nobody: no limit."""
        self.budget.set_unlimited(idle)

    def step_ended(self) -> None:
        self.budget.refill()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    def _finished(self, leg: DecodeLeg, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("intake_bug", request=leg.request_id, exc=error)
            self._owner.fail(leg, PdserveError.code, f"intake: {error!r}")
        self._owner.leg_task_done(leg)

    async def _run(self, leg: DecodeLeg) -> None:
        ticket = leg.submit.ticket
        assert ticket is not None, "a decode leg has a ticket"
        assert leg.promise is not None, "admitted without a promise"
        claim = leg.promise.claim
        leases: list[BlockLease] = []

        async def make_room(num_tokens: int) -> BlockLease:
            assert num_tokens == ticket.num_tokens, "room for another ticket"
            leg.become(LegState.LEASING)
            lease = await self._room.lease(claim, self._owner.reserve_for_arrivals())
            self._owner.keep_promise(leg)
            leg.become(LegState.RECEIVING)
            leases.append(lease)
            return lease

        try:
            imported = await self._importer.redeem(ticket, make_room, self.budget)
        except FinishedAtPrefill:
            self._owner.end(leg)
        except TransferError as error:
            self._report_failure(leg, ticket, error)
        except EngineFailure as error:  # this worker's device could not copy
            self._owner.fail(leg, error.code, str(error))
        except asyncio.CancelledError:
            for lease in leases:  # a read that had just ended when the cancel came
                lease.release()
            raise
        else:
            self._commit(leg, ticket, imported, Sequence(leg.attempt, leases[0], claim.chain))

    def _commit(
        self, leg: DecodeLeg, ticket: TransferTicket, imported: ImportedKv, sequence: Sequence
    ) -> None:
        attempt, first = leg.attempt, imported.first_token
        expected = (attempt.num_context_tokens, attempt.first_index)
        if (imported.num_tokens, first.index) != expected:
            sequence.lease.release()
            problem = (
                f"tokens and first index {imported.num_tokens}, {first.index} instead of {expected}"
            )
            self._report_failure(leg, ticket, FrameCorrupt(problem))
            return
        sequence.num_computed = imported.num_tokens
        sequence.append(first.token_id)
        token = TokenEvent(
            leg.request_id, leg.epoch, first.index, first.token_id, logprobs=first.logprobs
        )
        leg.sink.emit(Committed(leg.request_id, ticket.ticket_id, leg.epoch, imported.timing))
        leg.sink.emit(Tokens((token,)))
        self._owner.committed(leg, sequence, imported.timing)

    def _report_failure(self, leg: DecodeLeg, ticket: TransferTicket, error: TransferError) -> None:
        logger.warning(
            "kv_failed", request=leg.request_id, epoch=leg.epoch, holder=ticket.worker_id,
            code=error.code, error=error, next=error.next_step or None,
        )  # fmt: skip
        leg.sink.emit(KvFailed(leg.request_id, ticket.ticket_id, leg.epoch, error.code, str(error)))
        self._owner.end(leg)
