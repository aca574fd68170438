"""Command lines of role processes: this interpreter, ``-m cluster ROLE``, and every option that is
not at its default. Pure.
"""

from __future__ import annotations

import sys

from cluster.plan import ServicePlan
from cluster.spec import WorkerSpec
from pdserve.flags import to_flags
from pdserve.types import Role
from router.config import RouterConfig


def router_command(plan: ServicePlan, router: RouterConfig) -> list[str]:
    return [*_role("router"), *to_flags(router), *_common(plan, "router")]


def worker_command(plan: ServicePlan, worker: WorkerSpec, routers: tuple[str, ...]) -> list[str]:
    config = (
        plan.prefill_config(worker, routers)
        if worker.role is Role.PREFILL
        else plan.decode_config(worker, routers)
    )
    return [*_role(worker.role.value), *to_flags(config), *_common(plan, worker.role.value)]


def _role(name: str) -> list[str]:
    return [sys.executable, "-m", "cluster", name]


def _common(plan: ServicePlan, role: str) -> list[str]:
    process, log = plan.role_process[role]
    return [*to_flags(process), *to_flags(log)]
