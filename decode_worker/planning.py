"""From the legs a worker owns to the rows of its next step: applies scheduler.py's decisions.

Here decisions meet blocks: leases grow, KV is parked and restored, legs change between RUNNING,
PARKED and PREFILLING. The usual step, one token of every sequence and blocks enough, is made in one
pass without a snapshot. Knows no sessions and emits no events.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as SequenceOf

from decode_worker.leg import OWNED, DecodeLeg, LegState
from decode_worker.parking import copy_in, copy_out
from decode_worker.scheduler import SequenceView, Snapshot, StepDecision, plan_step
from engine.block_pool import BlockBuffers, BlockLease, BlockPool
from engine.prefix_cache import PrefixCache
from engine.step import StepRow
from pdserve.log import event_log

# A look that only moves sequences gives no rows: all had to leave at once and the oldest can come
# back at the second look; if it has to compute its KV again first, the third one sees that.
MAX_LOOKS = 3

logger = event_log(__name__)


class StepAssembler:
    """Builds steps. ``copies``: park by copying where the host addresses the pool (no GPU)."""

    def __init__(
        self,
        buffers: BlockBuffers,
        pool: BlockPool,
        cache: PrefixCache,
        *,
        chunk_tokens: int,
        step_tokens: int,
        copies: bool,
    ) -> None:
        self._buffers = buffers
        self._pool = pool
        self._cache = cache
        self._chunk_tokens = chunk_tokens
        self._step_tokens = step_tokens
        self._copies = copies and buffers.copier is None
        self.num_parkings = 0

    def assemble(self, legs: Collection[DecodeLeg]) -> list[StepRow]:
        """Rows of the next step; empty if there is nothing to do. ``legs``: in order of age."""
        rows = self.assemble_usual(legs)
        return self.assemble_any(legs) if rows is None else rows

    def assemble_usual(self, legs: Collection[DecodeLeg]) -> list[StepRow] | None:
        """What ``assemble_any`` gives where all there are only decode and nobody needs to make
        room; None, and no change: not so."""
        rows: list[StepRow] = []
        began: list[DecodeLeg] = []
        growing: list[tuple[BlockLease, int]] = []
        free, block_size = self._pool.num_free, self._buffers.layout.block_size
        for leg in legs:
            state = leg.state
            if state is LegState.RUNNING or state is LegState.COMMITTED:
                sequence = leg.held
                missing = -(-len(sequence.token_ids) // block_size) - sequence.lease.num_blocks
                if missing > 0:
                    free -= missing
                    growing.append((sequence.lease, missing))
                if state is LegState.COMMITTED:
                    began.append(leg)
                rows.append(StepRow(sequence, sequence.num_computed, 1, True))
            elif state is LegState.PREFILLING or state is LegState.PARKED:
                return None
        if free < 0:
            return None
        for leg in began:
            leg.become(LegState.RUNNING)
        for lease, missing in growing:
            extended = lease.extend(missing)
            assert extended, "grew without room"
        return rows

    def assemble_any(self, legs: Collection[DecodeLeg]) -> list[StepRow]:
        """By the scheduler's decision, whatever there is."""
        owned = [leg for leg in legs if leg.state in OWNED]
        for leg in owned:
            if leg.state is LegState.COMMITTED:
                leg.become(LegState.RUNNING)
        rows, moved = self._once(owned)
        looks = 1
        while not rows and moved and looks < MAX_LOOKS:
            rows, moved = self._once(owned)
            looks += 1
        return rows

    def _once(self, owned: SequenceOf[DecodeLeg]) -> tuple[list[StepRow], bool]:
        by_order = {leg.order: leg for leg in owned}
        decision = plan_step(self._snapshot(owned))
        for order in decision.park:
            self._park(by_order[order])
        for order in decision.restore:
            self._restore(by_order[order])
        for order in decision.grow:
            self._grow(by_order[order])
        return self._rows(by_order, decision), bool(decision.park or decision.restore)

    def _snapshot(self, owned: SequenceOf[DecodeLeg]) -> Snapshot:
        views: dict[LegState, list[SequenceView]] = {
            LegState.RUNNING: [], LegState.PREFILLING: [], LegState.PARKED: [],
        }  # fmt: skip
        may_park = self._pool.num_free < len(owned)  # a step takes at most a block for each
        for leg in owned:
            sequence = leg.held
            parked = leg.state is LegState.PARKED
            views[leg.state].append(
                SequenceView(
                    leg.order,
                    len(sequence.token_ids),
                    sequence.num_computed,
                    0 if parked else sequence.lease.num_blocks,
                    sequence.lease.num_shared if may_park and not parked else 0,
                )
            )
        return Snapshot(
            running=tuple(views[LegState.RUNNING]),
            prefilling=tuple(views[LegState.PREFILLING]),
            parked=tuple(views[LegState.PARKED]),
            free_blocks=self._pool.num_free,
            block_size=self._buffers.layout.block_size,
            chunk_tokens=self._chunk_tokens,
            step_tokens=self._step_tokens,
        )

    def _rows(self, by_order: dict[int, DecodeLeg], decision: StepDecision) -> list[StepRow]:
        rows = []
        for order in decision.decode:
            leg = by_order[order]
            if leg.state is LegState.RUNNING:  # a restored one may have to recompute first
                sequence = leg.held
                rows.append(StepRow(sequence, sequence.num_computed, 1, samples=True))
        for chunk in decision.chunks:
            sequence = by_order[chunk.order].held
            end = sequence.num_computed + chunk.num_tokens
            samples = end == len(sequence.token_ids)
            rows.append(StepRow(sequence, sequence.num_computed, chunk.num_tokens, samples))
        return rows

    def _park(self, leg: DecodeLeg) -> None:
        sequence = leg.held
        if self._copies:
            leg.parked = copy_out(self._buffers, sequence.lease, sequence.num_computed)
        else:
            sequence.num_computed = 0
        sequence.lease.release()
        leg.become(LegState.PARKED)
        self.num_parkings += 1
        logger.info(
            "parked", request=leg.request_id, tokens=len(sequence.token_ids),
            copied_bytes=leg.parked.num_bytes if leg.parked else 0,
        )  # fmt: skip

    def _restore(self, leg: DecodeLeg) -> None:
        sequence = leg.held
        lease = self._cache.claim_again(sequence).take()
        assert lease is not None, "the scheduler restored without room"
        sequence.lease = lease
        if leg.parked is not None:
            copy_in(self._buffers, lease, leg.parked)
            leg.parked = None
            leg.become(LegState.RUNNING)
        else:
            sequence.num_computed = self._cache.num_cached_tokens(lease)
            leg.become(LegState.PREFILLING)
        logger.info("restored", request=leg.request_id)

    def _grow(self, leg: DecodeLeg) -> None:
        sequence = leg.held
        missing = self._buffers.layout.num_blocks(len(sequence.token_ids))
        missing -= sequence.lease.num_blocks
        extended = sequence.lease.extend(missing)
        assert extended, "the scheduler grew without room"
