"""What is asked of a Ray cluster, as bundles of a placement group; why it cannot be had. Pure.

A seat is a place for one process: "prefill-0". A bundle holds one seat, or with ``pairs`` prefill
seat N and decode seat N, which puts the two on one node. Not covered: several GPUs a worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.onray.config import RayConfig
from cluster.plan import ServicePlan
from pdserve.errors import ConfigError, PdserveError
from pdserve.types import Role

ROUTER = "router"
ROLES = (ROUTER, Role.PREFILL.value, Role.DECODE.value)
_MIB = 1024 * 1024
_MORE_THAN_ROUNDING = 1e-6


class PlacementFailed(PdserveError):
    """The cluster had no places in time. Says what is missing and on which nodes."""

    code = "placement_failed"


@dataclass(frozen=True, slots=True)
class Need:
    """What one process asks for. ``memory_bytes`` is set aside by Ray, not enforced."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0
    resources: Mapping[str, float] | None = None
    labels: Mapping[str, str] | None = None

    def amounts(self) -> dict[str, float]:
        """By Ray's names; without what is zero."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes)}
        every = {**named, **(self.resources or {})}
        return {name: amount for name, amount in every.items() if amount > 0}


@dataclass(frozen=True, slots=True)
class Bundle:
    """Seats that stay together, with the sum of what they need."""

    seats: tuple[str, ...]
    amounts: Mapping[str, float]
    labels: Mapping[str, str]

    def describe(self) -> str:
        asked = [_amount(name, amount) for name, amount in self.amounts.items()]
        asked += [f"label {key}={value}" for key, value in self.labels.items()]
        return f"{' with '.join(self.seats)} ({', '.join(asked)})"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node that is alive. Amounts by Ray's names."""

    name: str
    total: Mapping[str, float]
    available: Mapping[str, float]
    labels: Mapping[str, str]


def needs_of(plan: ServicePlan) -> dict[str, Need]:
    """By role.

    Raises:
        ConfigError: a resource or label is not NAME=VALUE, or a role asks for nothing at all.
    """
    ray = plan.ray
    asked = {
        ROUTER: _need(ray, ROUTER, gpus=0.0),
        Role.PREFILL.value: _need(ray, "prefill", gpus=_gpus(plan, Role.PREFILL)),
        Role.DECODE.value: _need(ray, "decode", gpus=_gpus(plan, Role.DECODE)),
    }
    for role, need in asked.items():
        if not need.amounts():
            raise ConfigError(
                f"{role}_num_cpus, {role}_memory_mib, {role}_resources: one must be more than 0, "
                "or Ray has nothing to reserve"
            )
    return asked


def plan_bundles(
    seats: Sequence[str], needs: Mapping[str, Need], *, pairs: bool
) -> tuple[Bundle, ...]:
    """One bundle a seat, in order; pairs first.

    Raises:
        ConfigError: the two of a pair ask for different values of one label.
    """
    bundles: list[Bundle] = []
    left = list(seats)
    if pairs:
        for prefill in [seat for seat in seats if role_of(seat) == Role.PREFILL.value]:
            decode = f"{Role.DECODE.value}-{number_of(prefill)}"
            if decode in left:
                left.remove(prefill)
                left.remove(decode)
                bundles.append(_bundle((prefill, decode), needs))
    return (*(_bundle((seat,), needs) for seat in left), *bundles)


def role_of(seat: str) -> str:
    return seat.rpartition("-")[0]


def number_of(seat: str) -> int:
    return int(seat.rpartition("-")[2])


def explain(bundles: Iterable[Bundle], nodes: Sequence[NodeFacts], strategy: str) -> list[str]:
    """Why these cannot be placed now, one line a reason; empty: nothing is seen to be missing."""
    reasons: list[str] = []
    asked = list(bundles)
    for bundle in asked:
        if any(_fits(bundle, node, node.available) for node in nodes):
            continue
        fits_empty = any(_fits(bundle, node, node.total) for node in nodes)
        what = "has no place free now" if fits_empty else "fits no node"
        where = "; ".join(_missing(bundle, node) for node in nodes) or "there are no nodes"
        reasons.append(f"{bundle.describe()} {what}: {where}")
    return reasons or _explain_together(asked, nodes, strategy)


def _explain_together(
    bundles: Sequence[Bundle], nodes: Sequence[NodeFacts], strategy: str
) -> list[str]:
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        return [f"STRICT_SPREAD needs {len(bundles)} nodes, one for each place; {len(nodes)} live"]
    asked: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.amounts.items():
            asked[name] = asked.get(name, 0.0) + amount
    free = {name: [node.available.get(name, 0.0) for node in nodes] for name in asked}
    if strategy == "STRICT_PACK":
        have = {name: max(amounts, default=0.0) for name, amounts in free.items()}
        where = "on no one node (STRICT_PACK)"
    else:
        have = {name: sum(amounts) for name, amounts in free.items()}
        where = "in the whole cluster"
    return [
        f"together {_amount(name, amount)} asked for, {_amount(name, have[name])} free {where}"
        for name, amount in asked.items()
        if amount > have[name] + _MORE_THAN_ROUNDING
    ]


def _fits(bundle: Bundle, node: NodeFacts, amounts: Mapping[str, float]) -> bool:
    return not _wrong_labels(bundle, node) and all(
        amounts.get(name, 0.0) + _MORE_THAN_ROUNDING >= amount
        for name, amount in bundle.amounts.items()
    )


def _wrong_labels(bundle: Bundle, node: NodeFacts) -> list[str]:
    return [key for key, value in bundle.labels.items() if node.labels.get(key) != value]


def _missing(bundle: Bundle, node: NodeFacts) -> str:
    missing = [f"{key} is {node.labels.get(key, 'not set')}" for key in _wrong_labels(bundle, node)]
    for name, amount in bundle.amounts.items():
        free, total = node.available.get(name, 0.0), node.total.get(name, 0.0)
        if free + _MORE_THAN_ROUNDING < amount:
            missing.append(f"{_amount(name, free)} free of {_amount(name, total)}")
    return f"{node.name}: {', '.join(missing)}"


def _amount(name: str, amount: float) -> str:
    return f"{amount / _MIB:,.0f} MiB memory" if name == "memory" else f"{amount:g} {name}"


def _bundle(seats: tuple[str, ...], needs: Mapping[str, Need]) -> Bundle:
    amounts: dict[str, float] = {}
    labels: dict[str, str] = {}
    for seat in seats:
        need = needs[role_of(seat)]
        for name, amount in need.amounts().items():
            amounts[name] = amounts.get(name, 0.0) + amount
        for key, value in (need.labels or {}).items():
            if labels.setdefault(key, value) != value:
                raise ConfigError(
                    f"pairs: label {key} is {labels[key]} for prefill and {value} for decode; "
                    "no node has both"
                )
    return Bundle(seats, amounts, labels)


def _gpus(plan: ServicePlan, role: Role) -> float:
    asked = plan.ray.prefill_num_gpus if role is Role.PREFILL else plan.ray.decode_num_gpus
    if asked >= 0:
        return asked
    return 1.0 if plan.engine(role).device.startswith("cuda") else 0.0


def _need(ray: RayConfig, role: str, *, gpus: float) -> Need:
    return Need(
        cpus=getattr(ray, f"{role}_num_cpus"),
        gpus=gpus,
        memory_bytes=int(getattr(ray, f"{role}_memory_mib") * _MIB),
        resources=_resources(f"{role}_resources", getattr(ray, f"{role}_resources")),
        labels=dict(_split(f"{role}_labels", text) for text in getattr(ray, f"{role}_labels")),
    )


def _resources(option: str, texts: Iterable[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, value = _split(option, text)
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"{option} must be NAME=AMOUNT, not {text!r}") from None
    return found


def _split(option: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise ConfigError(f"{option} must be NAME=VALUE, not {text!r}")
    return name, value
