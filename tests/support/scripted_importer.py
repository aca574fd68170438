"""A KV read under the test's control: right KV, at the moment and with the outcome it chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine.block_pool import BlockLease, BlockPool
from engine.fake_runner import FakeRunner
from engine.sequence import Sequence
from engine.step import StepRow
from kvtransfer.importer import ImportedKv
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import FirstTokenInfo
from pdserve.types import Attempt, Endpoint, KvTiming, TransferTicket


class ScriptedImporter:
    """Satisfies what decode_worker needs of ``Importer``.

    ``target``: the decode worker's runner, whose blocks are filled. Each read waits for
    ``let_commit`` (set by default) after it has its room; ``fail_with`` makes it raise instead.
    """

    def __init__(self, target: FakeRunner, source: FakeRunner) -> None:
        self._target = target
        self._source = source
        self.attempts: dict[str, Attempt] = {}
        self.let_commit = asyncio.Event()
        self.let_commit.set()
        self.let_open = asyncio.Event()
        self.let_open.set()
        self.fail_with: BaseException | None = None
        self.num_with_room = 0
        self._one_at_a_time = asyncio.Lock()

    async def reach(self, endpoints: tuple[Endpoint, ...]) -> str:
        return "scripted"

    async def redeem(
        self,
        ticket: TransferTicket,
        make_room: Callable[[int], Awaitable[BlockLease]],
        intake: IntakeBudget,
    ) -> ImportedKv:
        await self.let_open.wait()
        lease = await make_room(ticket.num_tokens)
        self.num_with_room += 1
        try:
            await self.let_commit.wait()
            if self.fail_with is not None:
                raise self.fail_with
            async with self._one_at_a_time:
                first = await self._fill(self.attempts[ticket.ticket_id], lease)
        except BaseException:
            lease.release()
            raise
        num_bytes = lease.num_blocks * self._target.layout.block_bytes
        timing = KvTiming("scripted", ticket.num_tokens, num_bytes, 0.0)
        return ImportedKv(lease, ticket.num_tokens, first, timing)

    async def _fill(self, attempt: Attempt, lease: BlockLease) -> FirstTokenInfo:
        pool = BlockPool(self._source.buffers.num_blocks)
        held = pool.lease(lease.num_blocks)
        assert held is not None
        sequence = Sequence(attempt, held)
        (sampled,) = await self._source.run([StepRow(sequence, 0, len(sequence.token_ids), True)])
        assert sampled is not None
        for there, here in zip(held.block_ids, lease.block_ids, strict=True):
            self._target.buffers.view(here)[:] = self._source.buffers.view(there)
        held.release()
        return FirstTokenInfo(attempt.first_index, sampled.token_id, sampled.logprobs)
