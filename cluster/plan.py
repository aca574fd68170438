"""From the options of ``pdserve serve`` to what each process is told. Pure but for its inputs.

One set of sources (flags, environment, file) makes four configurations; what must be equal in all
(model, dtype, block size) is checked here, by name. Ports and addresses between the processes are
the launcher's and are filled in when they are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from cluster.catalogue import check_file
from cluster.config import ServeConfig
from cluster.onray.config import RayConfig
from cluster.spec import ClusterSpec, Host, WorkerGroup, WorkerSpec, plan_cluster
from decode_worker.config import DecodeConfig
from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from pdserve.app import ProcessConfig
from pdserve.config import Resolved, Sources, build_config, resolve
from pdserve.errors import ConfigError
from pdserve.flags import FlagParser
from pdserve.log import LogConfig
from pdserve.tracing import TracingConfig
from pdserve.types import Role
from prefill_worker.config import PrefillConfig
from router.config import RouterConfig

ValueT = TypeVar("ValueT")
ConfigT = TypeVar("ConfigT")

_ROLES = ("router", "prefill", "decode")

# Options that a launcher decides for its workers: a shared name means the router's.
_LAUNCHERS_OWN = ("listen", "advertise", "routers", "worker_id")
_SET_BY_LAUNCHER = ("routers", "worker_id")
_WORKERS_SAY = ("model", "served_model_name", "engine", "dtype", "weights")
_MUST_AGREE = ("model", "served_model_name", "engine", "dtype")
_BESIDE_SERVE = (ServeConfig, ProcessConfig, LogConfig)


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """Everything a launcher needs. ``router.model`` and ``engine.model`` name the same model."""

    serve: ServeConfig
    process: ProcessConfig
    log: LogConfig
    router: RouterConfig
    prefill: PrefillConfig
    decode: DecodeConfig
    role_process: Mapping[str, tuple[ProcessConfig, LogConfig]]  # by "router", "prefill", "decode"
    ray: RayConfig

    @property
    def roles(self) -> tuple[Role, ...]:
        """Those that have workers: one that no request could ever use is not started."""
        return self.router.used_roles

    def engine(self, role: Role) -> EngineConfig:
        return self.prefill.engine if role is Role.PREFILL else self.decode.engine

    def wants_cuda(self) -> bool:
        return any(self.engine(role).device.startswith("cuda") for role in self.roles)

    def idle_prefill_workers(self, sources: Sources) -> str:
        """What to tell of a number of prefill workers that was given and is passed over."""
        given = _given_prefill_workers(sources) if self.router.is_colocated else None
        if given is None:
            return ""
        return (
            f"prefill_workers {given.value} (from {given.origin}) is passed over: in colocated mode"
            " decode workers compute the prompts; --decode-workers says how many"
        )

    def cluster_spec(self, host: Host) -> ClusterSpec:
        """Raises ConfigError if the host has too little for it."""
        serve = self.serve
        counts = {Role.PREFILL: serve.prefill_workers, Role.DECODE: serve.decode_workers}
        devices = {Role.PREFILL: serve.prefill_devices, Role.DECODE: serve.decode_devices}
        groups = tuple(
            WorkerGroup(
                role,
                counts[role],
                self.engine(role).threads,
                self.engine(role).cpus,
                self.engine(role).device,
                devices[role],
            )
            for role in self.roles
        )
        return plan_cluster(groups, host, devices=serve.devices, pin=serve.pin)

    def with_model(self, model: str, served_name: str) -> ServicePlan:
        """The same service of a model prepared beforehand, with the decode workers' weights."""

        def named(engine: EngineConfig) -> EngineConfig:
            is_this = engine.weights == self.router.weights  # other weights: another folder
            return replace(
                engine,
                model=model if is_this else engine.model,
                served_model_name=served_name,
            )

        return replace(
            self,
            router=replace(self.router, model=model, served_model_name=served_name),
            prefill=replace(self.prefill, engine=named(self.prefill.engine)),
            decode=replace(self.decode, engine=named(self.decode.engine)),
        )

    def prefill_config(self, worker: WorkerSpec, routers: tuple[str, ...]) -> PrefillConfig:
        engine = _placed(self.prefill.engine, worker)
        return replace(self.prefill, engine=engine, worker_id=worker.name, routers=routers)

    def decode_config(self, worker: WorkerSpec, routers: tuple[str, ...]) -> DecodeConfig:
        engine = _placed(self.decode.engine, worker)
        return replace(self.decode, engine=engine, worker_id=worker.name, routers=routers)


def _placed(engine: EngineConfig, worker: WorkerSpec) -> EngineConfig:
    return replace(engine, threads=worker.threads, cpus=worker.cpus, device=worker.device)


def service_parser(prog: str, description: str) -> FlagParser:
    """Flags of a whole service: shared ones, and each worker option again per role."""
    parser = FlagParser(prog, description)
    parser.add_options("service", ServeConfig)
    parser.add_options("router", RouterConfig)
    parser.add_options("engines of both roles", EngineConfig)
    parser.add_options("KV transfer, both ends", TransferConfig)
    parser.add_options(
        "prefill workers only", PrefillConfig, prefix="prefill_", leave_out=_SET_BY_LAUNCHER
    )
    parser.add_options(
        "decode workers only", DecodeConfig, prefix="decode_", leave_out=_SET_BY_LAUNCHER
    )
    parser.add_options("tracing", TracingConfig)
    parser.add_options("process", ProcessConfig)
    parser.add_options("log", LogConfig)
    parser.add_options("on a Ray cluster (--launcher ray)", RayConfig)
    return parser


def read_plan(sources: Sources) -> ServicePlan:
    """Raises ConfigError: an option is unusable, or roles disagree where they must not."""
    check_file(sources)
    workers = _without_shared(sources, _LAUNCHERS_OWN)
    prefill = build_config(PrefillConfig, "prefill", workers, beside=(ProcessConfig, LogConfig))
    decode = build_config(DecodeConfig, "decode", workers, beside=(ProcessConfig, LogConfig))
    router = build_config(RouterConfig, "router", sources, beside=(ProcessConfig, LogConfig))
    plan = ServicePlan(
        serve=build_config(ServeConfig, "serve", sources, beside=_BESIDE_SERVE),
        process=build_config(ProcessConfig, "serve", sources, beside=_BESIDE_SERVE),
        log=build_config(LogConfig, "serve", sources, beside=_BESIDE_SERVE),
        router=router,
        prefill=prefill,
        decode=decode,
        role_process={
            role: (
                _of_role(ProcessConfig, role, sources),
                _of_role(LogConfig, role, sources),
            )
            for role in _ROLES
        },
        ray=build_config(RayConfig, "ray", sources),
    )
    _check_agreement(plan)
    _check_router_agrees(plan, sources)
    _check_prefill_workers_have_work(plan, sources)
    engine = plan.decode.engine
    return replace(
        plan, router=replace(router, **{name: getattr(engine, name) for name in _WORKERS_SAY})
    )


def resolve_plan(sources: Sources) -> dict[str, tuple[Resolved, ...]]:
    """Every option of the service by role, with its origin, as ``read_plan`` takes it.

    Raises ConfigError as ``read_plan`` does.
    """
    read_plan(sources)
    workers = _without_shared(sources, _LAUNCHERS_OWN)
    decode = resolve(DecodeConfig, "decode", workers)
    said = {each.field.name: each for each in decode if each.field.name in _WORKERS_SAY}
    router = resolve(RouterConfig, "router", sources)
    serve = (*resolve(ServeConfig, "serve", sources), *resolve(ProcessConfig, "serve", sources))
    found = {
        "router": tuple(said.get(each.field.name, each) for each in router),
        "prefill": _not_launchers(resolve(PrefillConfig, "prefill", workers)),
        "decode": _not_launchers(decode),
    }
    for role, options in found.items():
        found[role] = (*options, *_resolve_of_role(ProcessConfig, role, sources),
                       *_resolve_of_role(LogConfig, role, sources))  # fmt: skip
    return {
        "serve": (*serve, *resolve(LogConfig, "serve", sources)),
        "ray": resolve(RayConfig, "ray", sources),
        **found,
    }


def _resolve_of_role(cls: type, role: str, sources: Sources) -> tuple[Resolved, ...]:
    """What a child is told: the role's own word, else that of the whole service."""
    pairs = zip(resolve(cls, role, sources), resolve(cls, "serve", sources), strict=True)
    return tuple(own if own.own else whole for own, whole in pairs)


def _of_role(cls: type[ConfigT], role: str, sources: Sources) -> ConfigT:
    return cls(**{each.field.name: each.value for each in _resolve_of_role(cls, role, sources)})


def _not_launchers(options: tuple[Resolved, ...]) -> tuple[Resolved, ...]:
    return tuple(each for each in options if each.field.name not in _SET_BY_LAUNCHER)


def _check_agreement(plan: ServicePlan) -> None:
    first = plan.engine(plan.roles[0])
    for role in plan.roles[1:]:
        for name in (*_MUST_AGREE, *(() if plan.router.allows_mixed_weights else ("weights",))):
            ours, theirs = getattr(first, name), getattr(plan.engine(role), name)
            if ours != theirs:
                error = ConfigError(
                    f"{name} must be the same for all workers, not {ours!r} for "
                    f"{plan.roles[0]} and {theirs!r} for {role}"
                )
                raise error.advise("--mixed-weights allow") if name == "weights" else error


def _check_router_agrees(plan: ServicePlan, sources: Sources) -> None:
    """The router serves what the workers compute: its own word for it may not differ."""
    for each in resolve(RouterConfig, "router", sources):
        if each.own and each.field.name in _WORKERS_SAY:
            workers = getattr(plan.decode.engine, each.field.name)
            if each.value != workers:
                raise ConfigError(
                    f"{each.field.name} of the router is {each.value!r} (from {each.origin}) but "
                    f"{workers!r} for the workers; give it once, in [engine] or without a role"
                )


def _check_prefill_workers_have_work(plan: ServicePlan, sources: Sources) -> None:
    """In colocated mode the number is passed over and told, so that one set of options serves both
    modes; here who gave one expects prompts to go there, and none would."""
    if plan.router.is_colocated or Role.PREFILL in plan.roles:
        return
    if given := _given_prefill_workers(sources):
        raise ConfigError(
            f"prefill_workers is {given.value} (from {given.origin}), but with prefill_place "
            f"{plan.router.prefill_place} no prompt goes to a prefill worker"
        ).advise("leave out --prefill-workers, or take another --prefill-place")


def _given_prefill_workers(sources: Sources) -> Resolved | None:
    for each in resolve(ServeConfig, "serve", sources):
        if each.field.name == "prefill_workers" and not each.is_default:
            return each
    return None


def _without_shared(sources: Sources, names: tuple[str, ...]) -> Sources:
    """The sources without the shared (not the role's own) names of these options."""
    variables = {f"PDSERVE_{name.upper()}" for name in names}
    return replace(
        sources,
        flags=_without(sources.flags, set(names)),
        environment=_without(sources.environment, variables),
    )


def _without(mapping: Mapping[str, ValueT], names: set[str]) -> dict[str, ValueT]:
    return {key: value for key, value in mapping.items() if key not in names}
