"""The mutable life of one attempt inside one engine. Never leaves the process.

    token_ids  [ prompt | forced | sampled here ...]
                 <- KV computed: num_computed ->     (the last sampled token is not yet computed)

Owned by the event loop thread; a running step only reads it. Not covered: how tokens are chosen
(sampler), where blocks come from (block_pool).
"""

from __future__ import annotations

from engine.block_pool import BlockLease
from pdserve.prefix_keys import KeyChain
from pdserve.types import Attempt, FinishReason, RequestId, SamplingParams


class Sequence:
    """Token ids, KV blocks and progress of one attempt."""

    __slots__ = ("attempt", "chain", "lease", "num_computed", "num_prompt", "token_ids")

    def __init__(self, attempt: Attempt, lease: BlockLease, chain: KeyChain | None = None) -> None:
        """``chain`` names the content of its full blocks; None: they are not shared."""
        self.attempt = attempt
        self.lease = lease
        self.chain = chain
        self.token_ids: list[int] = list(attempt.context_ids)
        self.num_prompt = len(attempt.request.prompt_ids)
        self.num_computed = 0

    @property
    def request_id(self) -> RequestId:
        return self.attempt.request.request_id

    @property
    def sampling(self) -> SamplingParams:
        return self.attempt.request.sampling

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt, forced ones included; also the index of the next token."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)


def finish_reason(
    sequence: Sequence, token_id: int, eos_token_ids: tuple[int, ...], max_model_len: int
) -> FinishReason | None:
    """Whether ``token_id``, just appended to ``sequence``, is its last one.

    End-of-sequence and stop ids count only after ``min_tokens`` tokens (the sampler also masks
    them before that, so they can appear earlier only as forced tokens).
    """
    sampling = sequence.sampling
    if sequence.num_generated >= sampling.min_tokens:
        if token_id in eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP
        if token_id in sampling.stop_token_ids:
            return FinishReason.STOP
    if sequence.num_generated >= sampling.max_tokens:
        return FinishReason.LENGTH
    if len(sequence.token_ids) >= max_model_len:
        return FinishReason.LENGTH
    return None
