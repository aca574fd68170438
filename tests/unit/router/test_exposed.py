"""What is learnt of KV that comes after the first token, and what is never concluded from it."""

import pytest

from router.exposed import HALF_LIFE_S, Exposed, ExposedEstimate

CHUNK = 256


def seen(*samples: tuple[float, int]) -> ExposedEstimate:
    estimate = ExposedEstimate(CHUNK)
    for exposed_s, num_tokens in samples:
        estimate.observe(exposed_s, num_tokens, 0.0)
    return estimate


def predicted_s(estimate: ExposedEstimate, num_tokens: int, now_s: float = 0.0) -> float:
    fixed_s, per_token_s = estimate.at(now_s)
    return fixed_s + per_token_s * min(num_tokens, CHUNK)


def test_nothing_seen_costs_nothing() -> None:
    assert ExposedEstimate(CHUNK).at(5.0) == Exposed(0.0, 0.0)


@pytest.mark.parametrize("times", [1, 3, 20])
def test_a_short_prompt_says_little_of_a_long_one(times: int) -> None:
    """One token, 1.4 ms: a whole chunk is not thought to take 256 times as long."""
    estimate = seen(*[(0.0014, 1)] * times)
    assert 0.8 * 0.0014 * min(times, 5) / 5 < predicted_s(estimate, 600) < 0.0015


@pytest.mark.parametrize(("fixed_s", "per_token_s"), [(0.002, 0.0), (0.0, 1e-5), (0.002, 1e-5)])
def test_both_parts_are_found_where_lengths_differ(fixed_s: float, per_token_s: float) -> None:
    lengths = [1, 40, 256, 100, 7, 200, 256, 16, 128, 60] * 4
    estimate = seen(*[(fixed_s + per_token_s * n, n) for n in lengths])
    for num_tokens in (1, 128, 256):
        true_s = fixed_s + per_token_s * num_tokens
        # The ridge draws towards zero by a few hundredths of what a chunk takes.
        off_s = abs(predicted_s(estimate, num_tokens) - true_s)
        assert off_s < 0.15 * (fixed_s + per_token_s * CHUNK)


def test_longer_prompts_that_took_less_give_no_rate_below_zero() -> None:
    fixed_s, per_token_s = seen((0.005, 10), (0.001, 256), (0.005, 10), (0.001, 256)).at(0.0)
    assert per_token_s == 0.0
    assert 0.001 < fixed_s < 0.005


def test_a_start_below_zero_is_none() -> None:
    fixed_s, per_token_s = seen((0.0, 100), (0.004, 256), (0.0, 100), (0.004, 256)).at(0.0)
    assert fixed_s == 0.0
    assert per_token_s > 0.0


def test_newer_samples_count_for_more() -> None:
    once_slow = seen((0.1, 256), *[(0.001, 256)] * 20)
    assert predicted_s(once_slow, 256) < 0.003


def test_a_worker_that_nothing_came_from_is_tried_again() -> None:
    estimate = seen((0.5, 256))
    at_once_s = predicted_s(estimate, 256)
    assert predicted_s(estimate, 256, HALF_LIFE_S) == pytest.approx(at_once_s / 2)
    assert predicted_s(estimate, 256, 10 * HALF_LIFE_S) < 0.001
    estimate.observe(0.5, 256, 10 * HALF_LIFE_S)
    assert predicted_s(estimate, 256, 10 * HALF_LIFE_S) >= at_once_s


def test_more_than_a_chunk_is_a_chunk() -> None:
    assert seen((0.01, 10_000)).at(0.0) == seen((0.01, CHUNK)).at(0.0)
