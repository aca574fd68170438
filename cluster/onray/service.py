"""A service on a Ray cluster, as its driver sees it: started, waited for, stopped.

The work is the controller's. An owned service ends with this driver, however that ends: its
placement groups belong to the driver's job. Does not survive the loss of the cluster's head.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from cluster.child import Say
from cluster.onray.actors import controller_name, kill_actor, services
from cluster.onray.calls import ActorGone, answer
from cluster.onray.controller import Controller
from cluster.onray.session import connect, disconnect
from cluster.onray.state import NAMESPACE, forget_all_but
from cluster.onray.view import ServiceView
from cluster.plan import ServicePlan
from cluster.ready import WorkerReady
from cluster.service import ServiceAddress
from pdserve.clock import Clock
from pdserve.errors import ConfigError, PdserveError

_STOP_MARGIN_S = 30.0  # for actors to be closed and ended after their grace is over
_LOOK_AGAIN_S = 1.0


class RayService:
    """``start``, then ``stop`` or ``kill``; ``kill`` is safe at any time."""

    def __init__(self, plan: ServicePlan, *, clock: Clock, say: Say) -> None:
        serve = plan.serve
        if serve.devices or serve.prefill_devices or serve.decode_devices:
            raise ConfigError("devices: Ray gives each worker its own; see --prefill-num-gpus")
        self._plan = plan
        self._clock = clock
        self._say = say
        self._controller: Any = None
        self._is_connected = False
        self._view: ServiceView | None = None

    @property
    def address(self) -> ServiceAddress:
        """Of the first router."""
        return self.addresses[0]

    @property
    def addresses(self) -> tuple[ServiceAddress, ...]:
        assert self._view is not None, "not started"
        return self._view.addresses

    def reports(self) -> list[WorkerReady]:
        """Of the workers that ran when it was up."""
        assert self._view is not None, "not started"
        return list(self._view.workers)

    async def start(self) -> None:
        """Raises:
        ClusterUnreachable: no cluster, or it refuses.
        ConfigError: a service of this name runs there already.
        PdserveError: no places, or a process did not become ready. Call ``kill``.
        """
        config = self._plan.ray
        await asyncio.to_thread(
            connect, config.address, self._say,
            upload=config.upload, may_start=not config.detached,
        )  # fmt: skip
        self._is_connected = True
        there = services()
        forget_all_but(there)
        if config.service in there:
            raise ConfigError(f"a service {config.service!r} runs already; choose a --service")
        self._controller = (
            ray.remote(Controller)
            .options(
                name=controller_name(config.service),
                namespace=NAMESPACE,
                lifetime="detached" if config.detached else None,
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=0,
            )
            .remote(self._plan)
        )
        self._view = await answer(self._controller.start.remote())

    async def done(self) -> str:
        """Return, and why, when this driver is needed no more; until then, wait."""
        if self._plan.ray.detached:
            name = self._plan.ray.service
            self._controller = None
            return (
                f"it goes on without this driver; 'pdserve cluster stop --service {name}' ends it"
            )
        while True:
            try:
                await answer(self._controller.stopped.remote())
                return "stopped by another command"
            except ActorGone as error:
                self._say(f"the controller is away: {error}")
                await self._clock.sleep(_LOOK_AGAIN_S)
                if self._plan.ray.service not in services():
                    raise

    async def stop(self) -> None:
        """Drain and end everything."""
        if self._controller is not None:
            grace_s = self._plan.process.drain_grace_s
            await answer(self._controller.stop.remote(grace_s), 2 * grace_s + _STOP_MARGIN_S)

    async def kill(self) -> None:
        """End what is left, the connection last."""
        try:
            if self._controller is not None:
                await self._abort()
        finally:
            if self._is_connected:
                self._is_connected = False
                await asyncio.to_thread(disconnect)

    async def _abort(self) -> None:
        try:
            await answer(self._controller.abort.remote(), _STOP_MARGIN_S)
        except (PdserveError, TimeoutError) as error:
            self._say(f"the controller did not end the service: {error or 'no answer'}")
        kill_actor(self._controller)
        self._controller = None
