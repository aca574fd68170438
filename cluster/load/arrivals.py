"""What is sent and when: random prompts of exact length, arrivals at a rate. Seeded; pure.

Prompts are token ids, since text of random tokens does not encode back to as many tokens. Not
covered: traces, lengths drawn from a distribution, shared prefixes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """One request: greedy, and end-of-sequence tokens do not end it."""

    prompt_ids: tuple[int, ...]
    max_tokens: int


def draw_jobs(
    num_jobs: int, *, num_prompt_tokens: int, max_tokens: int, vocab_size: int, seed: str
) -> list[Job]:
    """Prompts of ids in [0, vocab_size), all different. The same seed gives the same jobs."""
    draw = random.Random(seed)
    return [
        Job(tuple(draw.randrange(vocab_size) for _ in range(num_prompt_tokens)), max_tokens)
        for _ in range(num_jobs)
    ]


def poisson_offsets(rate: float, num_arrivals: int, seed: str) -> list[float]:
    """Seconds from the start at which requests arrive: a Poisson process of ``rate`` a second."""
    if rate <= 0:
        raise ValueError(f"rate must be above 0, not {rate}")
    draw = random.Random(seed)
    offsets: list[float] = []
    now_s = 0.0
    for _ in range(num_arrivals):
        now_s += draw.expovariate(rate)
        offsets.append(now_s)
    return offsets
