"""What it would cost to send a request to each worker, in predicted seconds. Pure.

    prefill   what is ahead there + its own uncached part + KV that is not hidden behind computing
    decode    the step it would take part in + what it adds to the steps of those who are there
              + KV that has to come over + steps lost to parking if blocks run short

One unit for all of it, so that a cached block, a queue and a crowded batch can be weighed against
each other. The shapes of steps are pdserve/step_cost.py's, the additive form is that of Dynamo's
KV router (which counts blocks). What is ahead counts by the token: prompts of which nothing but
their length is known have no squares. Not covered: links of unlike speed between pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from router.fleet import Column, Columns


class PrefillParts(NamedTuple):
    queue_s: Column
    compute_s: Column
    exposed_s: Column

    @property
    def total_s(self) -> Column:
        return self.queue_s + self.compute_s + self.exposed_s


class DecodeParts(NamedTuple):
    step_s: Column  # with the request in it
    others_s: Column  # what it adds to one step, for each sequence that is there
    transfer_s: Column
    parking_s: Column

    @property
    def total_s(self) -> Column:
        return self.step_s + self.others_s + self.transfer_s + self.parking_s


def ahead_s(columns: Columns) -> Column:
    """Until each worker has computed the prompts that are there."""
    ahead = columns.uncomputed_tokens
    num_chunks = np.ceil(ahead / columns.chunk_tokens)
    return columns.prefill_fixed_s * num_chunks + columns.prefill_per_token_s * ahead


def prefill_parts(columns: Columns, num_tokens: int, cached: Column) -> PrefillParts:
    """Of a context of so many tokens, of which ``cached`` are there already (a row each)."""
    fixed, linear, chunk = (
        columns.prefill_fixed_s,
        columns.prefill_per_token_s,
        columns.chunk_tokens,
    )
    start = computable(cached, num_tokens, columns.block_size)
    left = num_tokens - start
    return PrefillParts(
        ahead_s(columns),
        fixed * np.ceil(left / chunk)
        + linear * left
        + columns.prefill_per_squared_token_s * (num_tokens**2 - start**2),
        columns.exposed_fixed_s + columns.exposed_per_token_s * np.minimum(num_tokens, chunk),
    )


def decode_parts(
    columns: Columns, num_tokens: int, total_tokens: int, cached: Column, shipped_s: float
) -> DecodeParts:
    """``total_tokens`` with the answer. ``shipped_s``: seconds for each token of KV that comes
    over, as far as it is not hidden."""
    batch, kv_tokens = columns.num_legs, columns.kv_tokens
    added_s = columns.decode_per_sequence_s + columns.decode_per_kv_token_s * num_tokens
    step_s = (
        columns.decode_fixed_s
        + columns.decode_per_sequence_s * batch
        + columns.decode_per_kv_token_s * kv_tokens
        + added_s
    )
    needed = np.ceil(total_tokens / columns.block_size)
    short = np.maximum(needed - columns.free_blocks, 0.0)
    missing = np.maximum(num_tokens - cached, 0.0)
    return DecodeParts(step_s, batch * added_s, shipped_s * missing, short * step_s)


def computable(cached: Column, num_tokens: int, block_size: Column) -> Column:
    """Where computing starts: at the end of what is cached, but the last token is computed."""
    return np.minimum(cached, (num_tokens - 1) // block_size * block_size)
