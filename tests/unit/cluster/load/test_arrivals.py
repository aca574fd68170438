"""Draws: exact lengths, ids in range, the asked rate, the same for the same seed."""

import pytest

from cluster.load.arrivals import draw_jobs, poisson_offsets


def test_jobs_have_exact_lengths_and_valid_ids() -> None:
    jobs = draw_jobs(20, num_prompt_tokens=33, max_tokens=7, vocab_size=50, seed="a")
    assert {len(job.prompt_ids) for job in jobs} == {33}
    assert {job.max_tokens for job in jobs} == {7}
    ids = [token_id for job in jobs for token_id in job.prompt_ids]
    assert min(ids) >= 0
    assert max(ids) < 50
    assert len(set(ids)) > 40


def test_jobs_differ_and_follow_the_seed() -> None:
    def draw(seed: str) -> list[tuple[int, ...]]:
        jobs = draw_jobs(5, num_prompt_tokens=16, max_tokens=1, vocab_size=1000, seed=seed)
        return [job.prompt_ids for job in jobs]

    assert draw("a") == draw("a")
    assert len(set(draw("a") + draw("b"))) == 10


def test_arrivals_are_a_poisson_process() -> None:
    offsets = poisson_offsets(4.0, 4000, seed="a")
    gaps = [later - earlier for earlier, later in zip([0.0, *offsets], offsets, strict=False)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert min(gaps) > 0
    assert mean == pytest.approx(1 / 4.0, rel=0.08)
    assert variance == pytest.approx(mean**2, rel=0.2)  # exponential gaps: deviation equals mean


def test_arrivals_follow_the_seed() -> None:
    assert poisson_offsets(1.0, 5, "a") == poisson_offsets(1.0, 5, "a")
    assert poisson_offsets(1.0, 5, "a") != poisson_offsets(1.0, 5, "b")


def test_refuses_a_rate_of_nothing() -> None:
    with pytest.raises(ValueError, match="rate"):
        poisson_offsets(0.0, 3, "a")
