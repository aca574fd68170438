"""The same service in one process: links instead of sessions over gRPC, no bytes copied for KV.

For tests, and to look at the whole path under one debugger. Faces still listen on their ports.
Real parallelism needs processes (local.py); nothing is started again here when it fails.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

from cluster.child import Say
from cluster.plan import ServicePlan
from cluster.ready import RouterReady, WorkerReady
from cluster.service import ServiceAddress
from cluster.serving_wait import raise_if_refused, wait_until_serving
from cluster.spec import ClusterSpec, WorkerSpec
from cluster.tasks import unless_one_fails
from decode_worker.app import DecodeApp
from engine.build import build_runner, prepare
from engine.step import StepRunner
from kvtransfer.transports.inproc import InprocNetwork
from pdserve.clock import Clock
from pdserve.errors import IncompatibleWorker
from pdserve.links import WorkerLink, link_pair
from pdserve.prepared import PreparedModel
from pdserve.types import Role
from prefill_worker.app import PrefillApp
from router.app import RouterApp


class InprocService:
    """``start``, then ``stop`` or ``kill``; ``kill`` is safe at any time.

    ``router`` and ``workers`` (by name) are there once started.
    """

    def __init__(self, plan: ServicePlan, spec: ClusterSpec, *, clock: Clock, say: Say) -> None:
        self._plan = plan
        self._spec = spec
        self._clock = clock
        self._say = say
        self._stack = AsyncExitStack()
        self._network = InprocNetwork()
        self.workers: dict[str, PrefillApp | DecodeApp] = {}

    async def start(self) -> None:
        """Raises ConfigError or ModelFileError as the parts do, IncompatibleWorker or PeerSilent as
        LocalService. Call ``kill`` then."""
        plan = self._plan
        model = prepare(plan.engine(Role.DECODE), progress=self._say)
        self.router = await self._stack.enter_async_context(
            RouterApp(plan.router, model, self._clock)
        )
        for worker in self._spec.workers:
            own = prepare(plan.engine(worker.role), progress=self._say)  # other weights, perhaps
            self.workers[worker.name] = await self._start_worker(worker, own)
        for report in self.reports():
            self._say(report.describe())
        await unless_one_fails(
            wait_until_serving(self.address.grpc_target, plan.serve.start_timeout_s),
            (self._raise_if_refused(name) for name in self.workers),
        )

    @property
    def address(self) -> ServiceAddress:
        router = self.router
        return ServiceAddress.of(
            RouterReady(
                pid=os.getpid(),
                host=self._plan.router.listen,
                http_port=router.http_port,
                grpc_port=router.grpc_port,
                worker_port=router.worker_port,
                model_name=router.model.name,
            )
        )

    def reports(self) -> list[WorkerReady]:
        return [WorkerReady.of(app.hello, os.getpid()) for app in self.workers.values()]

    async def done(self) -> str:
        """This does not return: the service is this process."""
        await asyncio.Event().wait()
        return ""

    async def stop(self) -> None:
        """Drain and end everything: the router first, then the workers."""
        grace_s = self._plan.process.drain_grace_s
        await self.router.drain(grace_s)
        for app in self.workers.values():
            await app.drain(grace_s)
        await self._stack.aclose()

    async def kill(self) -> None:
        await self._stack.aclose()

    async def _raise_if_refused(self, name: str) -> None:
        try:
            await self.workers[name].wait_refused()
        except IncompatibleWorker:
            await raise_if_refused(self.address.grpc_target, name)

    async def _start_worker(
        self, worker: WorkerSpec, model: PreparedModel
    ) -> PrefillApp | DecodeApp:
        routers = ("inproc",)
        if worker.role is Role.PREFILL:
            config = self._plan.prefill_config(worker, routers)
            runner = self._own(build_runner(config.engine, model, self._clock, nice=config.nice))
            return await self._stack.enter_async_context(
                PrefillApp(
                    config, model, runner, self._clock,
                    listeners=[self._network.listener()], dial_router=self._dial_router,
                )
            )  # fmt: skip
        decode_config = self._plan.decode_config(worker, routers)
        runner = self._own(build_runner(decode_config.engine, model, self._clock))
        return await self._stack.enter_async_context(
            DecodeApp(
                decode_config, model, runner, self._clock,
                dialers={"inproc": self._network.dialer()}, dial_router=self._dial_router,
            )
        )  # fmt: skip

    def _own(self, runner: StepRunner) -> StepRunner:
        self._stack.push_async_callback(runner.close)
        return runner

    async def _dial_router(self, _address: str) -> WorkerLink:
        workers_end, routers_end = link_pair()
        self.router.accept(routers_end)
        return workers_end
