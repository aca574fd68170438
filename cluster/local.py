"""A service as processes of this host: one router, its prefill and decode workers, all kept alive.

The router's ports are fixed by its first start, so that a router that died comes back where
workers and clients look for it. A stop goes downstream: the router first (it admits nothing more
and lets streams finish), then the workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from cluster.catalogue import role_variables
from cluster.child import Say
from cluster.commandline import router_command, worker_command
from cluster.plan import ServicePlan
from cluster.ready import ReadyReport, RouterReady, WorkerReady
from cluster.service import ServiceAddress
from cluster.serving_wait import raise_if_refused, wait_until_serving
from cluster.spec import ClusterSpec, WorkerSpec
from cluster.supervisor import Supervisor
from cluster.tasks import all_or_cancel, unless_one_fails
from pdserve.clock import Clock
from pdserve.config import environment_without
from pdserve.errors import ProtocolError

_STOP_MARGIN_S = 5.0  # for a process to end after its own grace is over


class LocalService:
    """``start``, then ``stop`` or ``kill``; ``kill`` is safe at any time."""

    def __init__(self, plan: ServicePlan, spec: ClusterSpec, *, clock: Clock, say: Say) -> None:
        self._plan = plan
        self._say = say
        # gRPC's own library tells of every connection that ends at a stop; its errors remain.
        self._env = {"GRPC_VERBOSITY": "ERROR", **environment_without(role_variables())}
        self._clock = clock
        self._router_config = plan.router
        self._address: ServiceAddress | None = None
        self._router = self._supervise("router", self._router_command)
        self.workers = {
            worker.name: self._supervise(worker.name, self._worker_command(worker))
            for worker in spec.workers
        }

    @property
    def router(self) -> Supervisor:
        return self._router

    @property
    def address(self) -> ServiceAddress:
        assert self._address is not None, "not started"
        return self._address

    def reports(self) -> list[WorkerReady]:
        """Of the workers that run now."""
        found = (worker.report for worker in self.workers.values())
        return [report for report in found if isinstance(report, WorkerReady)]

    async def start(self) -> None:
        """Every process ready and every worker in the router's pool.

        Raises:
            ChildFailed: one did not become ready. Call ``kill``.
            IncompatibleWorker: the router refused a worker that it cannot serve without.
            PeerSilent: a worker did not get into the router's pool in time.
        """
        report = await self._router.start()
        if not isinstance(report, RouterReady):
            raise ProtocolError("the router's ready line is a worker's")
        self._address = ServiceAddress.of(report)
        self._say(f"router ready: {self._address.describe()}, pid {report.pid}")
        self._router_config = replace(
            self._plan.router,
            http_port=report.http_port,
            grpc_port=report.grpc_port,
            worker_port=report.worker_port,
        )
        workers = self.workers.values()
        await unless_one_fails(self._start_workers(), map(self._raise_if_refused, workers))

    async def done(self) -> str:
        """A local service needs its launcher until the end: this does not return."""
        await asyncio.Event().wait()
        return ""

    async def stop(self) -> None:
        """Drain and end everything."""
        grace_s = self._plan.process.drain_grace_s
        await self._router.stop(grace_s + _STOP_MARGIN_S)
        await asyncio.gather(*(w.stop(_STOP_MARGIN_S) for w in self.workers.values()))

    async def kill(self) -> None:
        await asyncio.gather(*(each.kill() for each in (self._router, *self.workers.values())))

    async def _start_workers(self) -> None:
        await all_or_cancel(self._start_worker(worker) for worker in self.workers.values())
        await wait_until_serving(self.address.grpc_target, self._plan.serve.start_timeout_s)

    async def _raise_if_refused(self, worker: Supervisor) -> None:
        """Look at each death: a refused worker would be started and refused again and again."""
        report: ReadyReport | None = None
        while True:
            report = await worker.next_report(report)
            await worker.died()
            await raise_if_refused(self.address.grpc_target, worker.name)

    async def _start_worker(self, worker: Supervisor) -> None:
        report = await worker.start()
        if isinstance(report, WorkerReady):
            self._say(report.describe())

    def _supervise(self, name: str, command: Callable[[], list[str]]) -> Supervisor:
        return Supervisor(
            name,
            command,
            env=self._env,
            clock=self._clock,
            say=self._say,
            start_timeout_s=self._plan.serve.start_timeout_s,
        )

    def _router_command(self) -> list[str]:
        return router_command(self._plan, self._router_config)

    def _worker_command(self, worker: WorkerSpec) -> Callable[[], list[str]]:
        return lambda: worker_command(self._plan, worker, (self.address.worker_target,))
