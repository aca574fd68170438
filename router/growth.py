"""How long answers become, learnt from those that ended: what a request is expected to take.

A client's ``max_tokens`` is a bound and rarely what comes. For each tenant the mean length and its
mean deviation are followed (as TCP follows round trips: Jacobson, SIGCOMM 1988); expected is mean
plus two deviations, and the bound until something is known. Pure. Not covered: what the prompt says
of its answer.
"""

from __future__ import annotations

from collections import OrderedDict

_SMOOTHING = 1 / 16
MIN_SAMPLES = 8
MAX_TENANTS = 4096  # the one not heard of for longest is forgotten


class GrowthEstimate:
    def __init__(self) -> None:
        self._by_tenant: OrderedDict[str, tuple[int, float, float]] = OrderedDict()

    def observe(self, tenant: str, num_tokens: int) -> None:
        """An answer ended by itself with so many tokens."""
        count, mean, deviation = self._by_tenant.pop(tenant, (0, 0.0, 0.0))
        weight = max(_SMOOTHING, 1 / (count + 1))
        error = num_tokens - mean if count else 0.0
        mean = mean + weight * error if count else float(num_tokens)
        deviation += weight * (abs(error) - deviation)
        self._by_tenant[tenant] = count + 1, mean, deviation
        if len(self._by_tenant) > MAX_TENANTS:
            self._by_tenant.popitem(last=False)

    def expected(self, tenant: str, max_tokens: int) -> int:
        count, mean, deviation = self._by_tenant.get(tenant, (0, 0.0, 0.0))
        if count < MIN_SAMPLES:
            return max_tokens
        return max(1, min(max_tokens, round(mean + 2 * deviation)))
