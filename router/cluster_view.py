"""What the router knows of its cluster, as frozen values for people and probes.

`pdserve status`, /ready and the metrics read this; none of them sees a session.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.public import KvPairView, RefusedWorkerView
from pdserve.types import Endpoint, Role, WorkerId, WorkerLimits, WorkerStatus


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    worker_id: WorkerId
    incarnation: str
    role: Role
    device: str
    peer: str  # address its session comes from
    limits: WorkerLimits
    status: WorkerStatus
    endpoints: tuple[Endpoint, ...]
    num_legs: int  # of this router, that still hold something there
    draining: bool
    silent: bool = False  # reports no more, not lost yet


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    mode: str  # "disaggregated" | "colocated"
    model: str
    workers: tuple[WorkerEntry, ...]
    queue_len: int
    num_in_flight: int  # requests, those in the queue included
    num_tickets: int  # KV on its way or held for a reader
    draining: bool
    kv_pairs: tuple[KvPairView, ...] = ()
    needed_roles: tuple[Role, ...] = (Role.PREFILL, Role.DECODE)
    refused: tuple[RefusedWorkerView, ...] = ()  # at joining, and not joined since

    def num_serving(self, role: Role) -> int:
        """Workers of a role that take new work."""
        return sum(worker.role is role and not worker.draining for worker in self.workers)

    def can_serve(self) -> bool:
        """Whether a request that comes now finds a worker for each of its parts."""
        return not self.problem()

    def problem(self) -> str:
        """Why it cannot serve, "" if it can."""
        if self.draining:
            return "the router is shutting down"
        missing = [role.value for role in self.needed_roles if not self.num_serving(role)]
        return f"no {' and no '.join(missing)} worker" if missing else ""
