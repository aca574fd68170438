"""The ways to use the same resources that are compared. Pure: a plan in, flags of each setup out.

On a CPU the threads of all workers together are what is equal:

    disaggregated         P prefill + D decode workers, T threads each
    colocated, P + D      P + D workers that do both, T threads each
    colocated, 1          one worker that does both, (P + D) T threads

On CUDA devices the number of devices is: P + D workers with one each, either way. Not covered:
unlike cards, tensor parallelism.
"""

from __future__ import annotations

from cluster.plan import ServicePlan
from cluster.spec import ClusterSpec
from pdserve.errors import ConfigError
from pdserve.types import Role

DISAGGREGATED, COLOCATED, COLOCATED_ONE = (
    "disaggregated", "colocated, as many workers", "colocated, one worker",
)  # fmt: skip


def equal_setups(plan: ServicePlan, spec: ClusterSpec) -> dict[str, tuple[str, ...]]:
    """Flags of ``pdserve serve`` for each setup, to go after the service's own.

    ``spec``: the workers of the disaggregated service.

    Raises:
        ConfigError: the plan is colocated already or not of this host, or its threads cannot be
            divided evenly.
    """
    if plan.router.is_colocated:
        raise ConfigError("compare sets --mode by itself: leave it out")
    if Role.PREFILL not in plan.roles:
        raise ConfigError("compare needs prefill workers: leave --prefill-place always-local out")
    if plan.serve.launcher != "local":
        raise ConfigError("compare starts services on this host: leave --launcher out")
    num_workers = len(spec.workers)
    if any(worker.device.startswith("cuda") for worker in spec.workers):
        return {
            DISAGGREGATED: (),
            COLOCATED: ("--mode=colocated", f"--decode-workers={num_workers}"),
        }
    by_role = {
        role: next(worker.threads for worker in spec.workers if worker.role is role)
        for role in (Role.PREFILL, Role.DECODE)
    }
    total = sum(worker.threads for worker in spec.workers)
    if total % num_workers:
        raise ConfigError(
            f"{total} threads cannot be divided evenly among {num_workers} colocated workers; "
            "set --prefill-threads and --decode-threads so that they can"
        )
    each = total // num_workers
    setups = {
        DISAGGREGATED: tuple(f"--{role}-threads={n}" for role, n in by_role.items()),
        COLOCATED: (
            "--mode=colocated", f"--decode-workers={num_workers}", f"--decode-threads={each}",
        ),
        COLOCATED_ONE: ("--mode=colocated", "--decode-workers=1", f"--decode-threads={total}"),
    }  # fmt: skip
    return setups
