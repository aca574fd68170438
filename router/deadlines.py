"""The least time a request can take, by what steps cost: whether its deadline can still be met.

Pure, over a fleet. Nothing is claimed (None) before workers of each kind have measured their steps.
Not covered: what waits before it; that is admission.py's.
"""

from __future__ import annotations

import numpy as np

from router.costs import decode_parts, prefill_parts
from router.fleet import Column, Fleet
from router.policy import Demand


def least_service_s(demand: Demand, fleet: Fleet, cached: Column | None) -> float | None:
    """From now to its last expected token, at the workers that are fastest for it, at once."""
    if not fleet.is_measured:
        return None
    known = np.zeros(len(fleet)) if cached is None else cached
    prefill_s = float(
        prefill_parts(fleet.columns, demand.num_context_tokens, known).compute_s.min()
    )
    return prefill_s + least_decode_s(demand, fleet)


def least_decode_s(demand: Demand, fleet: Fleet) -> float:
    """From its first token to its last expected one; 0 without decode workers."""
    decodes = fleet.columns.is_prefill == 0
    num_tokens = demand.num_context_tokens
    num_steps = max(0, demand.expected_total_tokens - num_tokens - 1)
    if not num_steps or not decodes.any():
        return 0.0
    nothing = np.zeros(len(fleet))
    steps_s = decode_parts(fleet.columns, num_tokens, num_tokens, nothing, 0.0).step_s[decodes]
    return num_steps * float(steps_s.min())
