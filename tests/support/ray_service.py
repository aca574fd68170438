"""A service on the shared Ray cluster, started by the real command, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.internal_api import memory_summary
from ray.util.placement_group import placement_group_table

from cluster.onray.actors import controller_name, living_roles, services
from cluster.onray.calls import ActorGone, answer
from cluster.onray.state import NAMESPACE, StateStore
from cluster.onray.view import SeatView, ServiceView
from support.local_service import FAKE, FREE_PORTS, Command, command
from support.ray_cluster import RayCluster, wait_until

SMALL = (
    "--prefill-num-cpus=0.2", "--decode-num-cpus=0.2", "--health-interval-s=0.2",
    "--heartbeat-s=0.2", "--drain-grace-s=20", "--no-upload",
)  # fmt: skip
_ASK_AGAIN_S = 0.05
_TITLES = ("ray::RoleActor", "ray::Controller")
_NO_OBJECT = "Plasma memory usage 0 MiB, 0 objects"


class Served:
    """``process``: the driver. ``controller``: handle of the actor."""

    def __init__(self, service: str, process: Command, grpc_target: str) -> None:
        self.service = service
        self.process = process
        self.grpc_target = grpc_target

    @property
    def controller(self) -> Any:
        return ray.get_actor(controller_name(self.service), NAMESPACE)

    async def status(self) -> ServiceView:
        view: ServiceView = await answer(self.controller.status.remote(), 60)
        return view

    async def scale(self, counts: Mapping[str, int]) -> ServiceView:
        view: ServiceView = await answer(self.controller.scale.remote(counts), 60)
        return view

    async def drain(self, seat: str) -> ServiceView:
        view: ServiceView = await answer(self.controller.drain.remote(seat), 60)
        return view

    async def pid_of_controller(self) -> int:
        return int(await answer(self.controller.pid.remote(), 60))

    async def controller_after(self, pid: int) -> None:
        """Return once another process is the controller."""
        async with asyncio.timeout(60):
            while True:
                try:
                    if await self.pid_of_controller() != pid:
                        return
                except ActorGone:
                    await asyncio.sleep(_ASK_AGAIN_S)

    async def cluster_command(self, cluster: RayCluster, action: str, *words: str) -> Command:
        """``pdserve cluster``, run to its end."""
        flags = (f"--address={cluster.address}", f"--service={self.service}")
        async with command("cluster", action, *words, *flags) as done:
            await done.rest()
            return done

    async def seat(self, name: str) -> SeatView:
        return {seat.seat: seat for seat in (await self.status()).seats}[name]

    async def problem_of(self, name: str) -> str:
        """Why this one is down, once it is."""
        async with asyncio.timeout(60):
            while True:
                if problem := (await self.seat(name)).problem:
                    return problem
                await asyncio.sleep(_ASK_AGAIN_S)

    async def missing(self) -> str:
        """Why places are not had, once there is a reason; the controller may be away."""
        async with asyncio.timeout(60):
            while True:
                try:
                    if reasons := (await self.status()).missing:
                        return "; ".join(reasons)
                except ActorGone:
                    pass
                await asyncio.sleep(_ASK_AGAIN_S)

    async def seat_after(self, name: str, launch: int) -> SeatView:
        """The seat, once a later start than ``launch`` is up; the controller may be away."""
        async with asyncio.timeout(60):
            while True:
                try:
                    seat = await self.seat(name)
                    if seat.phase == "up" and seat.launch > launch:
                        return seat
                except ActorGone:
                    pass  # it lay on the same node and is brought back by Ray, then finds its seats
                await asyncio.sleep(_ASK_AGAIN_S)


@asynccontextmanager
async def served_on_ray(
    cluster: RayCluster, folder: Path, *flags: str, service: str = "tested"
) -> AsyncIterator[Served]:
    """Afterwards nothing of it is left on the cluster; a failed test leaves nothing to the next."""
    ready = folder / "ready.json"
    async with command(
        "serve", "--launcher=ray", f"--address={cluster.address}", f"--service={service}",
        *FREE_PORTS, *FAKE, *SMALL, f"--ready-file={ready}", *flags,
    ) as process:  # fmt: skip
        try:
            await process.line_with("serving fake")
            facts = json.loads(ready.read_text())
            served = Served(service, process, facts["grpc_target"])
            try:
                yield served
            except BaseException:
                await served.cluster_command(cluster, "stop")
                raise
        finally:
            if process.process.returncode is None:
                process.process.terminate()
            await process.rest()
    await asyncio.to_thread(assert_nothing_left, service)


def assert_nothing_left(service: str) -> None:
    wait_until(lambda: not living_roles(service) and service not in services())
    wait_until(lambda: not _groups())
    wait_until(lambda: not _role_processes())
    wait_until(lambda: _NO_OBJECT in memory_summary(stats_only=True))
    assert StateStore(service).load() is None


def _role_processes() -> list[psutil.Process]:
    """Below this process, whose cluster it is; Ray titles a process by its actor's class."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if " ".join(each.cmdline()).startswith(_TITLES):
                found.append(each)
    return found


def _groups() -> list[str]:
    table = placement_group_table()
    return [group["name"] for group in table.values() if group["state"] != "REMOVED"]
