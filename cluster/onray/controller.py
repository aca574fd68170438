"""The controller of a service on Ray: a named actor that keeps as many processes as are wanted.

    wanted (ServiceState) -> places (groups) -> one SeatKeeper a seat -> actors

Ray restarts it when it dies; it then reads what is wanted, finds the actors that live, and goes
on. Workers are not owned by it: they outlive its restart, and end with the placement groups, which
end with the job (or with ``stop``, if the service is detached). Not covered: changing options of a
running service.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.onray.actor import Assignment, RoleActor
from cluster.onray.actors import actor_name, kill_actor, living_roles, started_actor
from cluster.onray.calls import answer
from cluster.onray.groups import find_group, give_back, is_placed, node_facts, place
from cluster.onray.keeper import Patience, SeatKeeper
from cluster.onray.placement import (
    ROUTER,
    PlacementFailed,
    explain,
    needs_of,
    number_of,
    plan_bundles,
    role_of,
)
from cluster.onray.state import NAMESPACE, SeatRecord, ServiceState, StateStore
from cluster.onray.view import SeatView, ServiceView
from cluster.plan import ServicePlan
from cluster.ready import RouterReady
from cluster.service import ServiceAddress
from cluster.serving_wait import raise_if_refused, wait_until_serving
from cluster.tasks import all_or_cancel, unless_one_fails
from pdserve.clock import MonotonicClock
from pdserve.errors import ConfigError, PdserveError
from pdserve.log import event_log, setup_logging
from pdserve.types import Role

_CALL_S = 10.0
_LAST_WORDS_S = 0.5  # for the answer to a last call to leave

logger = event_log(__name__)


class Controller:
    """``start`` once; then ``status``, ``scale``, ``drain``, and at the end ``stop``."""

    async def __init__(self, plan: ServicePlan) -> None:  # type: ignore[misc]
        setup_logging(plan.log, "controller")
        self._plan = plan
        self._service = plan.ray.service
        self._needs = needs_of(plan)
        self._clock = MonotonicClock()
        self._store = StateStore(self._service)
        self._state = ServiceState(controller=ray.get_runtime_context().get_actor_id() or "")
        self._keepers: dict[str, SeatKeeper] = {}
        self._routers_told: dict[str, tuple[str, ...]] = {}
        self._phase = "starting"
        self._changing = asyncio.Lock()
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        before = self._store.load()
        if before is not None and before.controller == self._state.controller:
            await self._go_on(before)

    # --- what is asked of it --------------------------------------------------------------------

    async def start(self) -> ServiceView:
        """Places, routers, workers, until the first router can serve.

        Raises:
            PlacementFailed: the cluster has no room.
            IncompatibleWorker: the router refused a worker that it cannot serve without.
            PdserveError: a process did not become ready. Call ``abort``.
        """
        ray_config, serve = self._plan.ray, self._plan.serve
        counts = {
            ROUTER: ray_config.num_routers,
            Role.PREFILL.value: serve.prefill_workers if Role.PREFILL in self._plan.roles else 0,
            Role.DECODE.value: serve.decode_workers,
        }
        async with self._changing:
            await self._add([f"{role}-{n}" for role, count in counts.items() for n in range(count)])
            target = self._addresses()[0].grpc_target
            await unless_one_fails(
                wait_until_serving(target, serve.start_timeout_s),
                (_raise_if_refused(keeper, target) for keeper in self._keepers.values()),
            )
            self._phase = "up"
            return self._view()

    async def status(self) -> ServiceView:
        return self._view()

    async def pid(self) -> int:
        return os.getpid()

    async def scale(self, counts: Mapping[str, int]) -> ServiceView:
        """As many of each role as told; a role that is not told stays as it is.

        Raises:
            ConfigError: a count that leaves nothing to serve with.
            PlacementFailed: no room; what could be done without it was not done either.
            PdserveError: a new process did not become ready; the new ones are gone again.
        """
        async with self._changing:
            more: list[str] = []
            fewer: list[str] = []
            for role, count in counts.items():
                seats = self._seats_of(role)
                if count < 1 or not seats:
                    raise ConfigError(f"{role}: there must stay 1 at least, and be 1 before")
                fewer += seats[count:]
                more += self._new_seats(role, count - len(seats))
            if more:
                try:
                    await self._add(more)
                except BaseException:
                    await self._end(more)
                    raise
            await self._retire(fewer, self._plan.process.drain_grace_s)
            return self._view()

    async def drain(self, seat: str) -> ServiceView:
        """Take this one out: it finishes what it holds, and one fewer of its role is wanted.

        Raises:
            ConfigError: there is no such one, or it is the last of its role.
        """
        async with self._changing:
            if seat not in self._keepers:
                raise ConfigError(f"no {seat!r} here; there are {', '.join(self._keepers)}")
            if len(self._seats_of(role_of(seat))) == 1:
                raise ConfigError(f"{seat} is the last of its role; scale up first, or stop")
            await self._retire([seat], self._plan.process.drain_grace_s)
            return self._view()

    async def stop(self, grace_s: float) -> None:
        """Routers drain first (they admit nothing more and let streams finish), then workers."""
        async with self._changing:
            self._phase = "stopping"
            seats = list(self._keepers)
            await self._retire([seat for seat in seats if role_of(seat) == ROUTER], grace_s)
            await self._retire([seat for seat in seats if role_of(seat) != ROUTER], grace_s)
            self._store.forget()
            self._stopped.set()

    async def end(self) -> None:
        """Stop with the grace that the service was given, and then this actor too.

        The driver of an owned service ends by itself; a detached one has none.
        """
        await self.stop(self._plan.process.drain_grace_s)
        if self._plan.ray.detached:
            own = ray.get_runtime_context().current_actor
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, kill_actor, own)

    async def abort(self) -> None:
        """Everything at once."""
        self._phase = "stopping"
        await self._end(list(self._keepers))
        for group in list(self._state.groups):
            give_back(group)
        self._store.forget()
        self._stopped.set()

    async def stopped(self) -> None:
        """Return when the service was stopped, by whomever."""
        await self._stopped.wait()

    # --- seats ----------------------------------------------------------------------------------

    def _seats_of(self, role: str) -> list[str]:
        return sorted((s for s in self._state.seats if role_of(s) == role), key=number_of)

    def _new_seats(self, role: str, count: int) -> list[str]:
        """The lowest free numbers, so that places of an earlier, greater count are used again."""
        taken = {number_of(seat) for seat in self._seats_of(role)}
        free = [n for n in range(len(taken) + max(count, 0)) if n not in taken]
        return [f"{role}-{number}" for number in free[: max(count, 0)]]

    async def _add(self, seats: list[str]) -> None:
        await self._find_places([seat for seat in seats if self._state.place_of(seat) is None])
        for seat in seats:
            self._state.seats[seat] = SeatRecord(ports=self._ports_asked_for(seat))
            self._keepers[seat] = self._keeper(seat)
        self._save()
        routers = [seat for seat in seats if role_of(seat) == ROUTER]
        workers = [seat for seat in seats if role_of(seat) != ROUTER]
        await all_or_cancel(self._keepers[seat].start() for seat in routers)
        await all_or_cancel(self._keepers[seat].start() for seat in workers)
        await self._tell_routers()

    async def _find_places(self, seats: list[str]) -> None:
        if not seats:
            return
        bundles = plan_bundles(seats, self._needs, pairs=self._plan.ray.pairs)
        name = f"{self._service}:places:{self._state.num_groups}"
        self._state.num_groups += 1
        await place(name, bundles, self._plan.ray, self._clock, self._say)
        self._state.groups[name] = [list(bundle.seats) for bundle in bundles]

    async def _retire(self, seats: list[str], grace_s: float) -> None:
        for seat in seats:
            del self._state.seats[seat]
        self._save()
        await asyncio.gather(*(self._keepers[seat].retire(grace_s) for seat in seats))
        await self._forget(seats)

    async def _end(self, seats: list[str]) -> None:
        for seat in seats:
            self._state.seats.pop(seat, None)
        keepers = [self._keepers[seat] for seat in seats if seat in self._keepers]
        await asyncio.gather(*(keeper.kill() for keeper in keepers))
        await self._forget(seats)

    async def _forget(self, seats: list[str]) -> None:
        for seat in seats:
            self._keepers.pop(seat, None)
            self._routers_told.pop(seat, None)
        for group in self._state.empty_groups():
            give_back(group)
            del self._state.groups[group]
        self._save()
        if any(role_of(seat) == ROUTER for seat in seats):
            await self._tell_routers()

    def _keeper(self, seat: str) -> SeatKeeper:
        ray_config = self._plan.ray
        return SeatKeeper(
            seat,
            lambda: self._create(seat),
            self._seat_is_up,
            patience=Patience(
                self._plan.serve.start_timeout_s,
                ray_config.stall_s,
                ray_config.health_interval_s,
            ),
            clock=self._clock,
            say=self._say,
        )

    def _create(self, seat: str) -> Any:
        """The next actor of a seat, in its place."""
        found = self._state.place_of(seat)
        group = find_group(found[0]) if found is not None else None
        if found is None or group is None:
            raise PlacementFailed(f"{seat} has lost its placement group")
        record = self._state.seats[seat]
        record.launch += 1
        self._save()
        need = self._needs[role_of(seat)]
        routers = tuple(address.worker_target for address in self._addresses())
        self._routers_told[seat] = routers
        assignment = Assignment(seat, self._plan, need, routers, record.ports)
        actor_class = ray.remote(RoleActor)
        return actor_class.options(
            name=actor_name(self._service, seat, record.launch),
            namespace=NAMESPACE,
            lifetime="detached",  # from this actor; the placement group is what ends it
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            memory=need.memory_bytes or None,
            resources=dict(need.resources or {}) or None,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, found[1]),
        ).remote(assignment)

    # --- routers and those who serve them -------------------------------------------------------

    def _seat_is_up(self, keeper: SeatKeeper) -> None:
        assert keeper.started is not None
        report = keeper.started.report
        if isinstance(report, RouterReady):
            self._say(f"{keeper.seat} ready: {ServiceAddress.of(report).describe()}, "
                      f"pid {report.pid}")  # fmt: skip
            record = self._state.seats[keeper.seat]
            record.ports = (report.http_port, report.grpc_port, report.worker_port)
            self._save()
        else:
            self._say(report.describe() + f", on {keeper.started.place.host}")
        task = asyncio.create_task(self._tell_routers(), name="tell routers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_routers(self) -> None:
        """Let every worker serve the routers there are now."""
        routers = tuple(address.worker_target for address in self._addresses())
        for seat, keeper in list(self._keepers.items()):
            if role_of(seat) == ROUTER or keeper.actor is None or not routers:
                continue
            if self._routers_told.get(seat) == routers:
                continue
            self._routers_told[seat] = routers
            try:
                await answer(keeper.actor.serve_routers.remote(routers), _CALL_S)
            except (PdserveError, TimeoutError) as error:
                self._routers_told.pop(seat, None)
                self._say(f"{seat} could not be told of the routers: {error or 'no answer'}")

    def _addresses(self) -> list[ServiceAddress]:
        """Of the routers that are up, in order of their numbers."""
        found: list[ServiceAddress] = []
        for seat in self._seats_of(ROUTER):
            keeper = self._keepers.get(seat)
            started = keeper.started if keeper is not None else None
            if started is not None and isinstance(started.report, RouterReady):
                found.append(ServiceAddress.of(started.report))
        return found

    def _ports_asked_for(self, seat: str) -> tuple[int, int, int]:
        config = self._plan.router
        if seat == f"{ROUTER}-0":
            return config.http_port, config.grpc_port, config.worker_port
        return 0, 0, 0

    # --- after a restart ------------------------------------------------------------------------

    async def _go_on(self, state: ServiceState) -> None:
        self._state = state
        self._phase = "up"
        wanted = {actor_name(self._service, s, r.launch): s for s, r in state.seats.items()}
        for name in living_roles(self._service):
            if name not in wanted:  # was being retired, or had just been replaced
                kill_actor(ray.get_actor(name, NAMESPACE))
        for name, seat in wanted.items():
            keeper = self._keepers[seat] = self._keeper(seat)
            found = await started_actor(name)
            if found is None:
                keeper.start_again()
            else:
                keeper.adopt(*found)
        self._say(f"controller is back; {len(self._keepers)} seats")

    # --- views ----------------------------------------------------------------------------------

    def _view(self) -> ServiceView:
        return ServiceView(
            service=self._service,
            phase=self._phase,
            mode=self._plan.router.mode,
            seats=tuple(self._seat_view(seat, keeper) for seat, keeper in self._keepers.items()),
            free_places=tuple(self._state.free_places()),
            missing=self._missing(),
        )

    def _seat_view(self, seat: str, keeper: SeatKeeper) -> SeatView:
        record = self._state.seats.get(seat, SeatRecord())
        started = keeper.started
        if started is None or keeper.actor is None:
            return SeatView(seat, keeper.phase, record.launch, problem=keeper.problem)
        where = started.place
        return SeatView(
            seat, keeper.phase, record.launch, where.host, where.node_id, where.pid,
            started.report, keeper.problem, keeper.status,
        )  # fmt: skip

    def _missing(self) -> tuple[str, ...]:
        """Why places that were lost with a node are not had again yet."""
        missing: list[str] = []
        for name, bundles in self._state.groups.items():
            group = find_group(name)
            if group is not None and not is_placed(group):
                down = [s for s in bundles if any(self._is_down(seat) for seat in s)]
                asked = [
                    bundle
                    for seats in down
                    for bundle in plan_bundles(seats, self._needs, pairs=len(seats) > 1)
                ]
                missing += explain(asked, node_facts(), self._plan.ray.strategy)
        return tuple(missing)

    def _is_down(self, seat: str) -> bool:
        keeper = self._keepers.get(seat)
        return keeper is not None and keeper.actor is None

    def _save(self) -> None:
        self._store.save(self._state)

    def _say(self, line: str) -> None:
        """To standard error, which Ray shows at the driver."""
        logger.info("controller", text=line)


async def _raise_if_refused(keeper: SeatKeeper, target: str) -> None:
    await keeper.refused.wait()
    await raise_if_refused(target, keeper.seat)
