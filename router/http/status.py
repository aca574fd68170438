"""What the HTTP face asks of the service around it: can it serve, and how loaded is it.

The router application makes the value; /ready and /metrics show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdserve.metrics import WorkerRow
from pdserve.public import KvPairView


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """``ready``: both pools take work (one pool in colocated mode); ``problem`` says why not."""

    ready: bool
    problem: str = ""
    num_queued: int = 0  # requests waiting at the router for a dispatch
    workers: tuple[WorkerRow, ...] = ()
    kv_pairs: tuple[KvPairView, ...] = ()


StatusSource = Callable[[], ServiceStatus]
