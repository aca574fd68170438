"""Fits and the online estimator against costs made by a known rule."""

from __future__ import annotations

import random

import pytest

from pdserve.step_cost import (
    CostEstimator,
    DecodeCost,
    PrefillCost,
    StepCost,
    StepCostEstimator,
    fit,
)

DECODE = DecodeCost(0.008, 0.0005, 2e-7)
PREFILL = PrefillCost(0.002, 0.0006, 3e-8)


def _decode_samples(noise: float = 0.0) -> list[tuple[tuple[float, float, float], float]]:
    draw = random.Random(1)
    return [
        (
            DecodeCost.features(batch, batch * context),
            DECODE.seconds(batch, batch * context) * (1 + noise * draw.uniform(-1, 1)),
        )
        for batch in (1, 4, 16, 64, 256)
        for context in (128, 1024, 4096)
    ]


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_fit_finds_the_rule(is_relative: bool) -> None:
    found = fit(_decode_samples(), is_relative=is_relative)
    assert found.coefficients == pytest.approx(DECODE.coefficients, rel=1e-6)
    assert found.r_squared == pytest.approx(1)
    assert found.rms_residual_s < 1e-9


def test_residuals_are_what_the_rule_misses() -> None:
    samples = _decode_samples(noise=0.05)
    found = fit(samples, is_relative=True)
    assert found.coefficients == pytest.approx(DECODE.coefficients, rel=0.2)
    assert 0.99 < found.r_squared < 1
    cost = DecodeCost(*found.coefficients)
    for (features, seconds), residual in zip(samples, found.residuals_s, strict=True):
        predicted = cost.seconds(int(features[1]), int(features[2]))
        assert residual == pytest.approx(seconds - predicted)


def test_coefficients_are_never_negative() -> None:
    """Times that fall with the batch: the best fit that is not negative is a constant."""
    samples = [(DecodeCost.features(batch, 0), 0.02 - 0.001 * batch) for batch in (1, 2, 3)]
    assert fit(samples).coefficients == pytest.approx((0.018, 0, 0))


def test_samples_that_do_not_determine_everything_still_fit() -> None:
    samples = [(DecodeCost.features(8, 1024), 0.01)] * 3
    found = fit(samples)
    assert DecodeCost(*found.coefficients).seconds(8, 1024) == pytest.approx(0.01)
    assert found.r_squared == 1


@pytest.mark.parametrize("samples", [[], [((1.0, 1.0, 1.0), 0.0)], [((1.0, 1.0, 1.0), -1.0)]])
def test_unusable_samples_are_refused(
    samples: list[tuple[tuple[float, float, float], float]],
) -> None:
    with pytest.raises(ValueError, match="samples"):
        fit(samples)


def test_a_prefill_in_chunks_costs_its_chunks() -> None:
    chunks = [(start, start + 256) for start in range(0, 2048, 256)]
    total = sum(PREFILL.seconds(start, end) for start, end in chunks)
    assert PREFILL.seconds(0, 2048, num_chunks=8) == pytest.approx(total)
    assert PREFILL.seconds(1024, 2048, num_chunks=4) < total / 2 + 1024**2 * 2 * 3e-8


def test_the_estimator_finds_both_rules() -> None:
    estimator = StepCostEstimator()
    assert estimator.cost == StepCost()
    for _ in range(3):
        for features, seconds in _decode_samples():
            estimator.observe_decode(int(features[1]), int(features[2]), seconds)
        for start in range(0, 8192, 256):
            estimator.observe_chunk(start, start + 256, PREFILL.seconds(start, start + 256))
        estimator.observe_chunk(0, 100, PREFILL.seconds(0, 100))
    cost = estimator.cost
    assert cost.decode.coefficients == pytest.approx(DECODE.coefficients, rel=1e-3)
    assert cost.prefill.coefficients == pytest.approx(PREFILL.coefficients, rel=1e-2)
    assert (estimator.num_decode_samples, estimator.num_prefill_samples) == (45, 99)


def test_one_mix_for_long_does_not_wear_away_the_others() -> None:
    estimator = CostEstimator()
    for features, seconds in _decode_samples():
        estimator.observe(features, seconds)
    for _ in range(5000):
        estimator.observe(DecodeCost.features(8, 8192), DECODE.seconds(8, 8192))
    cost = DecodeCost(*estimator.coefficients)
    assert cost.seconds(256, 256 * 4096) == pytest.approx(DECODE.seconds(256, 256 * 4096), rel=0.05)


def test_a_machine_that_became_slower_is_followed() -> None:
    estimator = CostEstimator(DECODE.coefficients)
    for _ in range(40):
        for features, seconds in _decode_samples(noise=0.02):
            estimator.observe(features, 2 * seconds)
    assert DecodeCost(*estimator.coefficients).seconds(16, 16384) == pytest.approx(
        2 * DECODE.seconds(16, 16384), rel=0.05
    )


def test_one_paused_step_moves_little() -> None:
    estimator = CostEstimator()
    for _ in range(20):
        for features, seconds in _decode_samples():
            estimator.observe(features, seconds)
    estimator.observe(DecodeCost.features(16, 16384), 60.0)
    cost = DecodeCost(*estimator.coefficients)
    assert cost.seconds(16, 16384) == pytest.approx(DECODE.seconds(16, 16384), rel=0.1)


def test_steps_that_say_nothing_change_nothing() -> None:
    estimator = CostEstimator((1.0, 2.0, 3.0))
    estimator.observe((0.0, 0.0, 0.0), 1.0)
    estimator.observe((1.0, 1.0, 1.0), 0.0)
    assert estimator.coefficients == (1.0, 2.0, 3.0)
    assert estimator.num_samples == 0


def test_a_start_holds_for_what_was_not_seen() -> None:
    estimator = CostEstimator(DECODE.coefficients)
    for _ in range(10):
        estimator.observe(DecodeCost.features(1, 128), DECODE.seconds(1, 128))
    assert estimator.coefficients == pytest.approx(DECODE.coefficients, rel=1e-6)


@pytest.mark.parametrize("forgetting", [0.0, 1.1])
def test_forgetting_out_of_range_is_refused(forgetting: float) -> None:
    with pytest.raises(ValueError, match="forgetting"):
        CostEstimator(forgetting=forgetting)
