"""The usual step's one pass beside the scheduler's way: the same rows, blocks, states. Counts."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from decode_worker.leg import ARRIVING, OWNED, DecodeLeg, LegCounts, LegState
from decode_worker.planning import StepAssembler
from engine.block_pool import BlockPool
from engine.fake_model import prepare_fake_model
from engine.fake_runner import FakeRunner
from engine.prefix_cache import build_prefix_cache
from engine.sequence import Sequence
from pdserve.clock import MonotonicClock
from pdserve.messages import Submit
from pdserve.types import Leg
from support.fake_engine import make_attempt
from support.recording_sink import RecordingSink

BLOCK = 4
NUM_BLOCKS = 24


@dataclass
class Legs:
    """Legs of some lengths and states, over a pool of their own."""

    assembler: StepAssembler
    pool: BlockPool
    legs: list[DecodeLeg]
    counts: LegCounts

    def close(self) -> None:
        for leg in self.legs:
            leg.held.lease.release()

    @property
    def found(self) -> object:
        """What a step may change, by order instead of identity."""
        return [
            (leg.order, leg.state, leg.held.num_computed, leg.held.lease.block_ids)
            for leg in self.legs
        ]


def legs_of(kinds: list[tuple[int, LegState]], num_free: int) -> Legs:
    runner = FakeRunner(
        prepare_fake_model(), block_size=BLOCK, num_blocks=NUM_BLOCKS, clock=MonotonicClock(),
        dtype="float32", prefill_us_per_token=0.0, decode_step_ms=0.0,
    )  # fmt: skip
    counts = LegCounts()
    used = sum(-(-(num_tokens - 1) // BLOCK) for num_tokens, _ in kinds)
    pool = BlockPool(used + max(num_free, 1))
    cache = build_prefix_cache(pool, BLOCK, "model", enabled=True)
    legs = []
    for order, (num_tokens, state) in enumerate(kinds):
        attempt = make_attempt(range(65, 64 + num_tokens), request_id=f"r{order}")
        lease = pool.lease(-(-(num_tokens - 1) // BLOCK))
        assert lease is not None
        leg = DecodeLeg(Submit(order, Leg.DECODE, attempt, None), RecordingSink(), order, state,
                        counts)  # fmt: skip
        leg.sequence = Sequence(attempt, lease)
        leg.sequence.num_computed = num_tokens - 1 if state is not LegState.PREFILLING else 0
        leg.sequence.append(7)
        legs.append(leg)
    assembler = StepAssembler(
        runner.buffers, pool, cache, chunk_tokens=8, step_tokens=0, copies=False
    )
    return Legs(assembler, pool, legs, counts)


KINDS = st.lists(
    st.tuples(
        st.integers(2, 12),
        st.sampled_from([LegState.RUNNING, LegState.COMMITTED, LegState.RECEIVING]),
    ),
    max_size=6,
)


@given(KINDS, st.integers(1, 6))
def test_the_usual_step_is_what_the_scheduler_decides(
    kinds: list[tuple[int, LegState]], num_free: int
) -> None:
    one, other = legs_of(kinds, num_free), legs_of(kinds, num_free)
    before = one.found
    try:
        usual = one.assembler.assemble_usual(one.legs)
        plain = other.assembler.assemble_any(other.legs)
        if usual is None:
            assert one.found == before and other.assembler.num_parkings > 0
            return
        assert [(row.sequence.request_id, *row[1:]) for row in usual] == [
            (row.sequence.request_id, *row[1:]) for row in plain
        ]
        assert one.found == other.found and one.pool.num_free == other.pool.num_free
    finally:
        one.close()
        other.close()


def test_prompts_and_parked_ones_are_not_usual() -> None:
    for state in (LegState.PREFILLING, LegState.PARKED):
        legs = legs_of([(5, LegState.COMMITTED), (6, state)], 6)
        before = legs.found
        assert legs.assembler.assemble_usual(legs.legs) is None
        assert legs.found == before
        legs.close()


@given(st.lists(st.sampled_from(list(LegState)), max_size=20))
def test_counts_are_those_of_the_legs(states: list[LegState]) -> None:
    legs = legs_of([(3, LegState.OPENING), (3, LegState.OPENING)], 2)
    first, second = legs.legs
    for number, state in enumerate(states):
        leg = first if number % 2 else second
        leg.become(state)
        alive = [each.state for each in legs.legs if each.state is not LegState.ENDED]
        assert {each: legs.counts.of(each) for each in LegState} == {
            each: alive.count(each) for each in LegState
        }
        assert legs.counts.num_owned == sum(each in OWNED for each in alive)
        assert legs.counts.num_arriving == sum(each in ARRIVING for each in alive)
    legs.close()


def test_an_ended_leg_stays_ended() -> None:
    """Its KV read may still be about to say that it has room."""
    legs = legs_of([(3, LegState.OPENING)], 2)
    (leg,) = legs.legs
    leg.become(LegState.ENDED)
    leg.become(LegState.LEASING)
    assert leg.state is LegState.ENDED
    assert all(legs.counts.of(each) == 0 for each in LegState)
    legs.close()
