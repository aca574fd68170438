"""How much memory a worker on a CPU gives to KV when it is not told.

Half of what the host can give at start, times the share of its cores that compute for this worker:
workers that divide the cores divide that half too, whoever starts first (memory of a pool is taken
as blocks are used, so the second worker still sees it as available). No torch here: ``pdserve
doctor`` asks as well. Not covered: workers started by hand that each compute on all cores; give
them --threads or --kv-memory-mib.
"""

from __future__ import annotations

import os

DEFAULT_KV_SHARE = 0.5


def default_cpu_kv_bytes(num_threads: int, available_bytes: int) -> float:
    """``num_threads`` of the cores this process may use compute; more than all count as all."""
    share = min(1.0, num_threads / len(os.sched_getaffinity(0)))
    return DEFAULT_KV_SHARE * share * available_bytes
