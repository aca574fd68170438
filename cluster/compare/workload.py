"""What every setup is sent: recorded or drawn arrivals, scaled, and prompts of those lengths. Pure.

    recorded requests -> scaled in time and length, cut to the context -> prompts of random ids

Prompts with equal leading ``block_ids`` begin with equal tokens. The same seed gives the same load,
for every setup and round. Answers are exactly as long as asked (no end-of-sequence).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.compare.traces import MOONCAKE_BLOCK_TOKENS, RecordedRequest
from cluster.load.arrivals import Job, poisson_offsets


@dataclass(frozen=True, slots=True)
class Scaling:
    """Times and lengths are multiplied; see CompareConfig."""

    time: float = 1.0
    length: float = 1.0
    spread_s: float = 0.0
    answer: float = 0.0  # 0: as length

    @property
    def block_tokens(self) -> int:
        """Tokens that one block id stands for, after scaling."""
        return max(1, round(MOONCAKE_BLOCK_TOKENS * self.length))


@dataclass(frozen=True, slots=True)
class Workload:
    """``requests``: times from 0, lengths as they will be sent. ``num_cut``: shortened to fit."""

    requests: tuple[RecordedRequest, ...]
    block_tokens: int
    num_cut: int

    @property
    def span_s(self) -> float:
        return self.requests[-1].at_s

    @property
    def offsets_s(self) -> list[float]:
        return [request.at_s for request in self.requests]


def drawn_requests(isl: int, osl: int, rate: float, count: int, seed: str) -> list[RecordedRequest]:
    """Requests of one shape that arrive as a Poisson process of ``rate`` a second."""
    return [RecordedRequest(at_s, isl, osl) for at_s in poisson_offsets(rate, count, seed)]


def scaled(recorded: Sequence[RecordedRequest], scaling: Scaling) -> list[RecordedRequest]:
    """Times from 0. Requests recorded at one time are spread, in order, over ``spread_s``."""
    began_s = recorded[0].at_s
    times_s = [request.at_s - began_s for request in recorded]
    return [
        RecordedRequest(
            (time_s + _place_in_step(times_s, index) * scaling.spread_s) * scaling.time,
            max(1, round(request.num_prompt_tokens * scaling.length)),
            max(1, round(request.num_output_tokens * (scaling.answer or scaling.length))),
            request.block_ids,
        )
        for index, (time_s, request) in enumerate(zip(times_s, recorded, strict=True))
    ]


def _place_in_step(times_s: Sequence[float], index: int) -> float:
    """In [0, 1): which of those at the same time this one is."""
    first, after = index, index
    while first > 0 and times_s[first - 1] == times_s[index]:
        first -= 1
    while after < len(times_s) and times_s[after] == times_s[index]:
        after += 1
    return (index - first) / (after - first)


def cut_to_fit(
    requests: Sequence[RecordedRequest],
    *,
    max_model_len: int,
    max_prompt_tokens: int = 0,
    max_output_tokens: int = 0,
    block_tokens: int = MOONCAKE_BLOCK_TOKENS,
) -> Workload:
    """Shorten what is over a limit (0: none of its own): answers first, then prompts.

    An answer may take at most half of the context, a prompt what is left of it.
    """
    fitted: list[RecordedRequest] = []
    for request in requests:
        num_output = min(request.num_output_tokens, max_model_len // 2)
        num_output = min(num_output, max_output_tokens or num_output)
        num_prompt = min(request.num_prompt_tokens, max_model_len - num_output)
        num_prompt = min(num_prompt, max_prompt_tokens or num_prompt)
        fitted.append(replace(request, num_prompt_tokens=num_prompt, num_output_tokens=num_output))
    num_cut = sum(a != b for a, b in zip(fitted, requests, strict=True))
    return Workload(tuple(fitted), block_tokens, num_cut)


def jobs_of(workload: Workload, vocab_size: int, seed: str) -> list[Job]:
    """A prompt of random ids in [0, vocab_size) for each request; equal blocks, equal ids."""
    return [
        Job(
            _prompt(request, workload.block_tokens, vocab_size, f"{seed} {number}", seed),
            request.num_output_tokens,
        )
        for number, request in enumerate(workload.requests)
    ]


def _prompt(
    request: RecordedRequest, block_tokens: int, vocab_size: int, own_seed: str, block_seed: str
) -> tuple[int, ...]:
    ids: list[int] = []
    for block in request.block_ids:
        if len(ids) >= request.num_prompt_tokens:
            break
        ids.extend(_draw(f"{block_seed} block {block}", block_tokens, vocab_size))
    ids.extend(_draw(own_seed, max(0, request.num_prompt_tokens - len(ids)), vocab_size))
    return tuple(ids[: request.num_prompt_tokens])


def _draw(seed: str, count: int, vocab_size: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocab_size) for _ in range(count)]
