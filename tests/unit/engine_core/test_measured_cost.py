"""What an engine says its steps cost, before, after one kind of step, and after many."""

from __future__ import annotations

import random

import pytest

from engine.block_pool import BlockPool
from engine.measured_cost import LEARN_AFTER_S, LEARN_FROM_ALL, MeasuredCost
from engine.sequence import Sequence
from engine.step import StepRow
from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from support.fake_engine import make_attempt


def row(start: int, end: int) -> StepRow:
    lease = BlockPool(1).lease(1)
    assert lease is not None
    sequence = Sequence(make_attempt([1] * end), lease)
    lease.release()
    return StepRow(sequence, start, end - start, samples=True)


def test_nothing_is_told_of_what_has_not_run() -> None:
    measured = MeasuredCost()
    assert measured.cost == StepCost()
    measured.observe([row(0, 100)], 0.1)
    assert measured.cost.prefill != StepCost().prefill
    assert measured.cost.decode == StepCost().decode


def test_a_prefix_is_worth_its_tokens_after_prompts_of_one_length() -> None:
    measured = MeasuredCost()
    for _ in range(20):
        measured.observe([row(0, 256)], 0.256)
    cost = measured.cost.prefill
    assert cost.seconds(0, 256) == pytest.approx(0.256, rel=0.02)
    assert cost.seconds(192, 256) < 0.5 * 0.256


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_short_prompts_predicts_nothing_absurd_of_a_long_one(seed: int) -> None:
    draw, measured = random.Random(seed), MeasuredCost()
    for _ in range(3):
        num_tokens = draw.randrange(1, 8)
        measured.observe([row(0, num_tokens)], 0.002 * draw.uniform(0.7, 2.5))
        for index in range(num_tokens, num_tokens + 8):
            measured.observe([row(index, index + 1)], 0.0024 * draw.uniform(0.7, 2.5))
    assert measured.cost.prefill.seconds(0, 600, 3) < 600 * 0.005  # a token's worth is no more
    assert measured.cost.decode.seconds(1, 600) < 4 * 0.0024


def test_what_steps_cost_is_found() -> None:
    true = StepCost(PrefillCost(2e-3, 3e-4, 1e-7), DecodeCost(4e-3, 5e-4, 2e-6))
    measured = MeasuredCost()
    for number in range(300):
        start, length = 256 * (number % 8), 16 * (1 + number % 16)
        chunk = row(start, start + length)
        measured.observe([chunk], true.prefill.seconds(start, start + length))
        batch = [row(9 + 50 * index, 10 + 50 * index) for index in range(1 + number % 8)]
        kv_tokens = sum(each.end for each in batch)
        measured.observe(batch, true.decode.seconds(len(batch), kv_tokens))
    for start, end in ((0, 128), (0, 256), (512, 768), (1792, 2048)):
        found = measured.cost.prefill.seconds(start, end)
        assert found == pytest.approx(true.prefill.seconds(start, end), rel=0.1)
    assert measured.cost.decode.seconds(8, 1000) == pytest.approx(
        true.decode.seconds(8, 1000), rel=0.05
    )


def test_steps_of_both_kinds_say_nothing() -> None:
    measured = MeasuredCost()
    measured.observe([row(9, 10), row(0, 64)], 1.0)
    assert measured.cost == StepCost()


@pytest.mark.parametrize(("start", "end"), [(0, 64), (63, 64)])
def test_short_steps_are_learnt_from_once_they_took_long_together(start: int, end: int) -> None:
    measured, step_s = MeasuredCost(), LEARN_AFTER_S / 100
    for _ in range(LEARN_FROM_ALL):
        measured.observe([row(start, end)], step_s)
    known = measured.cost
    for _ in range(90):
        measured.observe([row(start, end)], step_s)
        assert measured.cost == known
    for _ in range(20):
        measured.observe([row(start, end)], 2 * step_s)
    assert measured.cost != known


def test_long_chunks_are_all_learnt_from() -> None:
    measured = MeasuredCost()
    for number in range(2 * LEARN_FROM_ALL):
        known = measured.cost
        measured.observe([row(0, 64)], LEARN_AFTER_S * (1 + number % 3))
        assert measured.cost != known
