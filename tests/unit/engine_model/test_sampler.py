"""The sampler against a plain twin that ranks everything, row by row, and against statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.block_pool import BlockPool
from engine.logit_edits import plan_edits
from engine.sampler import SamplingRow, sample, uniform
from engine.sequence import Sequence
from engine.step import SampledToken
from pdserve.types import Attempt, Request, RequestId, SamplingParams

VOCAB = 2000
EOS_IDS = (2,)


def make_sequence(
    sampling: SamplingParams, prompt: tuple[int, ...], generated: tuple[int, ...]
) -> Sequence:
    attempt = Attempt(Request(RequestId("r"), prompt, sampling), epoch=0)
    lease = BlockPool(1).lease(1)
    assert lease is not None
    sequence = Sequence(attempt, lease)
    lease.release()
    for token_id in generated:
        sequence.append(token_id)
    return sequence


def make_row(
    sampling: SamplingParams,
    prompt: tuple[int, ...] = (5,),
    generated: tuple[int, ...] = (),
    vocab: int = VOCAB,
) -> SamplingRow:
    sequence = make_sequence(sampling, prompt, generated)
    edits = plan_edits(sequence, EOS_IDS, vocab)
    return SamplingRow(sampling, len(generated), edits)


def sample_rows(logits: NDArray[np.float32], rows: list[SamplingRow]) -> list[SampledToken]:
    """As the sampler finds the best ids itself, and as kernels give them."""
    found = sample(torch.from_numpy(logits.copy()), rows)
    best_ids = logits.argmax(-1).astype(np.int32)
    assert sample(torch.from_numpy(logits.copy()), rows, best_ids) == found
    return found


def twin(
    logits: NDArray[np.float32],
    sampling: SamplingParams,
    prompt: tuple[int, ...],
    generated: tuple[int, ...],
) -> int:
    """The order of SamplingParams' docstring, one token at a time, nothing clever."""
    line = logits.astype(np.float32).copy()
    for token_id in {*prompt, *generated}:
        value, penalty = line[token_id], np.float32(sampling.repetition_penalty)
        line[token_id] = value / penalty if value > 0 else value * penalty
    for token_id in set(generated):
        line[token_id] -= np.float32(sampling.presence_penalty) + np.float32(
            sampling.frequency_penalty
        ) * np.float32(generated.count(token_id))
    for token_id, bias in sampling.logit_bias:
        line[token_id] += np.float32(bias)
    if len(generated) < sampling.min_tokens:
        stops = sampling.stop_token_ids + (() if sampling.ignore_eos else EOS_IDS)
        line[list(stops)] = -np.inf
    ranked = sorted(range(len(line)), key=lambda token_id: (-line[token_id], token_id))
    if sampling.temperature == 0:
        return ranked[0]
    return twin_draw(line, ranked, sampling, len(generated))


def twin_draw(
    line: NDArray[np.float32], ranked: list[int], sampling: SamplingParams, index: int
) -> int:
    best = line[ranked[0]]
    weights = [np.exp((line[i] - best) / np.float32(sampling.temperature)) for i in ranked]
    if sampling.top_k:
        weights = weights[: sampling.top_k]
    whole, kept, so_far = sum(map(float, weights)), [], 0.0
    for weight in weights:
        if kept and (so_far >= sampling.top_p * whole or weight < np.float32(sampling.min_p)):
            break
        kept.append(float(weight))
        so_far += float(weight)
    left = uniform(sampling.seed, 0, index) * sum(kept)
    for token_id, kept_weight in zip(ranked, kept, strict=False):
        left -= kept_weight
        if left < 0:
            return token_id
    return ranked[len(kept) - 1]


def random_params(rng: np.random.Generator) -> SamplingParams:
    def sometimes(value: float, default: float) -> float:
        return value if rng.random() < 0.5 else default

    return SamplingParams(
        max_tokens=100,
        min_tokens=int(sometimes(8, 0)),
        temperature=sometimes(float(rng.uniform(0.2, 3.0)), 0.0 if rng.random() < 0.2 else 1.0),
        top_k=int(sometimes(int(rng.integers(1, 400)), 0)),
        top_p=sometimes(float(rng.uniform(0.1, 1.0)), 1.0),
        min_p=sometimes(float(rng.uniform(0.0, 0.3)), 0.0),
        repetition_penalty=sometimes(float(rng.uniform(0.5, 2.0)), 1.0),
        presence_penalty=sometimes(float(rng.uniform(-2, 2)), 0.0),
        frequency_penalty=sometimes(float(rng.uniform(-2, 2)), 0.0),
        logit_bias=((7, 3.0), (2, 9.0)) if rng.random() < 0.3 else (),
        stop_token_ids=(7, 8) if rng.random() < 0.5 else (),
        ignore_eos=bool(rng.random() < 0.5),
        seed=int(rng.integers(0, 2**62)),
    )


def test_equals_the_twin_in_batches_of_mixed_parameters() -> None:
    rng = np.random.default_rng(0)
    for spread in (0.3, 3.0, 10.0):
        logits = (rng.standard_normal((64, VOCAB)) * spread).astype(np.float32)
        params = [random_params(rng) for _ in range(64)]
        prompts = [tuple(rng.integers(0, VOCAB, 30).tolist()) for _ in params]
        generated = [tuple(rng.integers(0, VOCAB, i % 12).tolist()) for i in range(64)]
        rows = [make_row(*parts) for parts in zip(params, prompts, generated, strict=True)]
        found = [token.token_id for token in sample_rows(logits, rows)]
        expected = [twin(*parts) for parts in zip(logits, params, prompts, generated, strict=True)]
        assert found == expected


def test_rows_do_not_depend_on_their_batch() -> None:
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((32, 49152)) * 2).astype(np.float32)
    params = [replace(random_params(rng), num_logprobs=5) for _ in range(32)]
    rows = [make_row(sampling, vocab=49152) for sampling in params]
    together = sample_rows(logits, rows)
    num_threads = torch.get_num_threads()
    try:
        for other_num_threads in (1, 2):
            torch.set_num_threads(other_num_threads)
            alone = [sample_rows(logits[i : i + 1], [rows[i]])[0] for i in range(32)]
            assert alone == together
    finally:
        torch.set_num_threads(num_threads)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [3, 900]] = 1.0
    assert sample_rows(logits, [make_row(SamplingParams())])[0].token_id == 3
    one_best = SamplingParams(temperature=1.0, top_k=1, seed=9)
    assert sample_rows(logits, [make_row(one_best)])[0].token_id == 3


def test_equal_logits_are_ranked_by_id() -> None:
    """More equals than are ranked at first: a draw still walks them in order of id."""
    logits = np.zeros((1, VOCAB), np.float32)
    for seed in range(20):
        sampling = SamplingParams(temperature=1.0, seed=seed)
        (token,) = sample_rows(logits, [make_row(sampling)])
        assert token.token_id == int(uniform(seed, 0, 0) * VOCAB)
    top = SamplingParams(temperature=1.0, top_k=10, num_logprobs=4)
    for index in range(50):
        row = make_row(top, generated=(0,) * index)
        (token,) = sample_rows(logits, [row])
        assert token.token_id < 10
        assert token.logprobs is not None
        assert [token_id for token_id, _ in token.logprobs.top] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=8),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1),
    ],
    ids=["plain", "top_k", "top_p", "min_p"],
)
def test_draws_follow_the_distribution(sampling: SamplingParams) -> None:
    """Chi-square over 4,000 seeds (seeds are fixed, so the outcome is too)."""
    vocab, num_draws = 24, 4000
    line = np.random.default_rng(2).standard_normal(vocab).astype(np.float32) * 1.5
    rows = [make_row(replace(sampling, seed=seed), vocab=vocab) for seed in range(num_draws)]
    tokens = sample_rows(np.tile(line, (num_draws, 1)), rows)
    counts = np.bincount([token.token_id for token in tokens], minlength=vocab)
    weights = np.exp((line.astype(np.float64) - line.max()) / sampling.temperature)
    order = np.argsort(-weights)
    kept = np.zeros(vocab, bool)
    kept[order[: sampling.top_k or vocab]] = True
    before = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
    kept[order[before >= sampling.top_p * weights.sum()]] = False
    kept &= weights >= sampling.min_p
    expected = np.where(kept, weights, 0.0)
    expected *= num_draws / expected.sum()
    assert not counts[~kept].any()
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = int(kept.sum()) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_uniform_numbers_are_fixed_and_even() -> None:
    """Fixed: a change would change every seeded answer."""
    assert uniform(0, 0, 0) == 0.13870941014555427
    assert uniform(2**63 - 1, 0, 17) == 0.8044646846156092
    numbers = np.array([uniform(seed, 0, index) for seed in range(50) for index in range(50)])
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert ((counts - 125) ** 2 / 125).sum() < 19 + 4 * np.sqrt(38)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06


def test_stop_tokens_cannot_come_before_min_tokens() -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [2, 7, 9]] = 30.0, 20.0, 10.0
    sampling = SamplingParams(max_tokens=9, min_tokens=2, stop_token_ids=(7, 10**6))
    for num_generated, expected in ((0, 9), (1, 9), (2, 2)):
        row = make_row(sampling, generated=(5,) * num_generated)
        assert sample_rows(logits, [row])[0].token_id == expected
    without_eos = replace(sampling, ignore_eos=True)
    assert sample_rows(logits, [make_row(without_eos)])[0].token_id == 2


def test_logprobs_are_the_models_own() -> None:
    """Before bias, temperature and truncation; the chosen token's is given even if not among n."""
    line = np.random.default_rng(3).standard_normal(VOCAB).astype(np.float32) * 3
    exact = line - np.log(np.exp(line.astype(np.float64)).sum())
    sampling = SamplingParams(temperature=0.5, top_k=2, logit_bias=((77, 100.0),), num_logprobs=3)
    row = make_row(replace(sampling, temperature=0.0))
    (token,) = sample_rows(line[None], [row])
    assert token.token_id == 77
    assert token.logprobs is not None
    assert token.logprobs.chosen == pytest.approx(exact[77], abs=1e-4)
    best = np.argsort(-line)[:3]
    assert [token_id for token_id, _ in token.logprobs.top] == best.tolist()
    np.testing.assert_allclose([p for _, p in token.logprobs.top], exact[best], atol=1e-4)
    none_asked = replace(sampling, num_logprobs=0)
    (token,) = sample_rows(line[None], [make_row(none_asked)])
    assert token.logprobs is not None
    assert token.logprobs.top == ()
