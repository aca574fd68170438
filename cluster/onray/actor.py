"""One router, prefill or decode worker as a Ray actor: the same App, serving the same gRPC.

Ray starts it, asks how it is, and ends it. No request, token or KV byte goes through its methods;
KV may go through Ray's object store (kvtransfer/transports/ray.py).
Does not know the controller, its own place, nor when it is started again.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ray

from cluster.onray.placement import ROUTER, Need, role_of
from cluster.plan import ServicePlan
from cluster.ready import ReadyReport, RouterReady
from cluster.role_app import enter_decode, enter_prefill, enter_router
from engine.config import EngineConfig
from kvtransfer.transports.ray import RayDialer, RayListener
from pdserve.clock import MonotonicClock
from pdserve.log import event_log, setup_logging
from pdserve.types import Role, WorkerStatus
from prefill_worker.config import PrefillConfig
from router.config import RouterConfig

if TYPE_CHECKING:
    from decode_worker.app import DecodeApp
    from prefill_worker.app import PrefillApp
    from router.app import RouterApp

_LOOPBACK = "127.0.0.1"
_ANY = ("0.0.0.0", "::")
_NO_PORT = f"{_LOOPBACK}:0"

logger = event_log(__name__)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one actor is to be. ``routers``: worker ports to dial. ``ports``: http, grpc, worker."""

    seat: str
    plan: ServicePlan
    need: Need
    routers: tuple[str, ...] = ()
    ports: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor runs."""

    node_id: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Started:
    report: ReadyReport
    place: Place


class RoleActor:
    """``start`` once, then ``ended`` is waited on; ``close`` before it is killed."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        _, log = assignment.plan.role_process[role_of(assignment.seat)]
        setup_logging(log, assignment.seat)
        self._stack = AsyncExitStack()
        self._router: RouterApp | None = None
        self._worker: PrefillApp | DecodeApp | None = None
        self._started: Started | None = None

    async def start(self) -> Started:
        """Enter the role.

        Raises:
            ConfigError, ModelFileError: as the role does.
        """
        host = self._host()
        report = await self._enter(host)
        context = ray.get_runtime_context()
        self._started = Started(report, Place(context.get_node_id(), host, report.pid))
        return self._started

    async def started(self) -> Started | None:
        """What ``start`` returned, for a controller that was not there."""
        return self._started

    async def ended(self) -> str:
        """Return when the role has ended by itself, and why; while it serves, wait.

        Raises:
            IncompatibleWorker: a router refused this worker.
            Exception: the engine loop broke.
        """
        if self._worker is None:
            await asyncio.Event().wait()  # a router does not end by itself
        assert self._worker is not None
        await self._worker.wait_refused()
        return "left its routers"

    async def health(self) -> WorkerStatus | None:
        """None for a router. An answer at all says that the event loop turns."""
        return self._worker.worker.status() if self._worker is not None else None

    async def serve_routers(self, routers: tuple[str, ...]) -> None:
        """Workers: serve exactly these from now on."""
        if self._worker is not None:
            await self._worker.serve_routers(routers)

    async def drain(self, grace_s: float) -> None:
        """Admit nothing more and let what runs finish for up to ``grace_s``."""
        if app := self._router or self._worker:
            await app.drain(grace_s)

    async def close(self) -> None:
        """Leave the role: connections closed, everything given back."""
        await self._stack.aclose()

    def _host(self) -> str:
        if self._assignment.plan.ray.bind == "loopback":
            return _LOOPBACK
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    async def _enter(self, host: str) -> ReadyReport:
        assignment, plan = self._assignment, self._assignment.plan
        clock = MonotonicClock()
        role = role_of(assignment.seat)
        if role == ROUTER:
            router = _placed_router(plan.router, host, assignment.ports)
            self._router, report = await enter_router(self._stack, router, clock, _tell_progress)
            return _reachable(report, host)
        engine = _placed_engine(plan.engine(Role(role)), assignment.need)
        if role == Role.PREFILL.value:
            prefill = replace(
                _placed_prefill(plan.prefill, host),
                engine=engine, worker_id=assignment.seat, routers=assignment.routers,
            )  # fmt: skip
            over_ray = RayListener(f"{host}:0")
            self._worker, ready = await enter_prefill(
                self._stack, prefill, clock, _tell_progress, over_ray
            )
            return ready
        decode = replace(
            plan.decode, engine=engine, worker_id=assignment.seat, routers=assignment.routers
        )
        self._worker, ready = await enter_decode(
            self._stack, decode, clock, _tell_progress, RayDialer()
        )
        return ready


def _tell_progress(line: str) -> None:
    logger.info("preparing", text=line)


def _placed_engine(engine: EngineConfig, need: Need) -> EngineConfig:
    """As many threads as logical CPUs; Ray shows a worker its own GPU alone, as the first."""
    return replace(engine, threads=engine.threads or max(1, int(need.cpus)))


def _placed_router(config: RouterConfig, host: str, ports: tuple[int, int, int]) -> RouterConfig:
    http_port, grpc_port, worker_port = ports
    return replace(
        config,
        listen=host if config.listen == _LOOPBACK else config.listen,
        http_port=http_port,
        grpc_port=grpc_port,
        worker_port=worker_port,
    )


def _placed_prefill(config: PrefillConfig, host: str) -> PrefillConfig:
    if config.listen == _NO_PORT:
        return replace(config, listen=f"{host}:0")
    return replace(config, advertise=config.advertise or host)


def _reachable(report: RouterReady, host: str) -> RouterReady:
    return replace(report, host=host) if report.host in _ANY else report
