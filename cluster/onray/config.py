"""Options of the Ray launcher: which cluster, and what each process asks of the hosts there.

A place is asked for by role, so that compute-heavy cards take prefill and bandwidth-heavy ones
decode. Knows neither Ray nor what there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pdserve.config import Option
from pdserve.shared_options import Json

Address = Annotated[
    str,
    Option(
        "Ray cluster, host:port; empty: that of RAY_ADDRESS or of this host, else serve starts one"
    ),
]
Service = Annotated[str, Option("name of the service; several may run on one cluster")]
DEFAULT_SERVICE = "pdserve"

_Cpus = Annotated[
    float, Option("logical CPUs of each process of this role", unit="CPUs", low=0, high=4096)
]
_Gpus = Annotated[
    float,
    Option("logical GPUs of each worker; -1: one if its device is CUDA, else none", unit="GPUs",
           low=-1, high=64),
]  # fmt: skip
_Memory = Annotated[
    float, Option("memory that Ray sets aside for each process of this role", unit="MiB", low=0)
]
_Resources = Annotated[
    tuple[str, ...], Option("custom resource each process of this role asks for, NAME=AMOUNT")
]
_Labels = Annotated[
    tuple[str, ...], Option("label a node must have for this role, KEY=VALUE, e.g. of"
                            " ray.io/accelerator-type")
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class RayConfig:
    address: Address = ""
    service: Service = DEFAULT_SERVICE
    num_routers: Annotated[
        int, Option("routers; the first has the ports asked for, the others any free ones",
                    unit="routers", low=1, high=64)
    ] = 1  # fmt: skip
    strategy: Annotated[
        str,
        Option(
            "how the processes are laid out over nodes",
            choices=("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
        ),
    ] = "PACK"
    pairs: Annotated[
        bool, Option("keep prefill worker N and decode worker N on one node")
    ] = False  # fmt: skip
    detached: Annotated[
        bool, Option("the service outlives its driver; 'pdserve cluster stop' ends it")
    ] = False
    bind: Annotated[
        str,
        Option(
            "where ports listen unless --listen says: node: the address by which Ray knows the"
            " node; loopback: for clusters of one host",
            choices=("node", "loopback"),
        ),
    ] = "node"
    upload: Annotated[
        bool, Option("send this checkout to the nodes (a job submission has sent it already)")
    ] = True
    placement_timeout_s: Annotated[
        float, Option("longest wait for places on the cluster", unit="s", low=0.1)
    ] = 120.0
    stall_s: Annotated[
        float, Option("a process that makes no progress for so long is replaced", unit="s", low=0.5)
    ] = 60.0
    health_interval_s: Annotated[
        float, Option("pause between two looks at a process", unit="s", low=0.05)
    ] = 2.0
    router_num_cpus: _Cpus = 0.0
    router_memory_mib: _Memory = 256.0
    router_resources: _Resources = ()
    router_labels: _Labels = ()
    prefill_num_cpus: _Cpus = 1.0
    prefill_num_gpus: _Gpus = -1.0
    prefill_memory_mib: _Memory = 0.0
    prefill_resources: _Resources = ()
    prefill_labels: _Labels = ()
    decode_num_cpus: _Cpus = 1.0
    decode_num_gpus: _Gpus = -1.0
    decode_memory_mib: _Memory = 0.0
    decode_resources: _Resources = ()
    decode_labels: _Labels = ()


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    address: Address = ""
    service: Service = DEFAULT_SERVICE
    router: Annotated[
        int, Option("scale: routers there shall be; 0: as many as now", unit="routers", low=0,
                    high=64, private=True)
    ] = 0  # fmt: skip
    prefill: Annotated[
        int, Option("scale: prefill workers there shall be; 0: as many as now", unit="workers",
                    low=0, high=256, private=True)
    ] = 0  # fmt: skip
    decode: Annotated[
        int, Option("scale: decode workers there shall be; 0: as many as now", unit="workers",
                    low=0, high=256, private=True)
    ] = 0  # fmt: skip
    json: Json = False
