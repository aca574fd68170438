"""A real Ray cluster of this host for tests: own folder, own ports, own token; gone afterwards.

A head with a dashboard, and more raylets as nodes on request, with logical CPUs and GPUs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.cluster_utils import Cluster

_QUICK_TO_MISS_A_NODE = {"health_check_period_ms": 500, "health_check_timeout_ms": 3000}
_ASK_AGAIN_S = 0.05
_OBJECT_STORE_BYTES = 128 * 1024 * 1024  # little, and more than Ray's least


@dataclass(frozen=True)
class RayCluster:
    """``environment``: what commands of this cluster (``ray job submit``, drivers) need."""

    cluster: Cluster
    address: str
    dashboard_url: str
    environment: dict[str, str]

    def add_node(self, **options: Any) -> Any:
        """One more raylet; options as of ``ray start`` (num_cpus, num_gpus, labels, resources)."""
        return self.cluster.add_node(object_store_memory=_OBJECT_STORE_BYTES, **options)

    def add_nodes(self, *options: dict[str, Any]) -> list[Any]:
        """Several at once, which start beside each other."""
        nodes = [
            self.cluster.add_node(wait=False, object_store_memory=_OBJECT_STORE_BYTES, **each)
            for each in options
        ]
        self.cluster.wait_for_nodes()
        return nodes

    def remove_node(self, node: Any, *, in_order: bool = False) -> None:
        """As if its host had lost its power, or ``in_order``; returns once the cluster knows."""
        self.cluster.remove_node(node, allow_graceful=in_order)
        wait_until(lambda: node.node_id not in {each["NodeID"] for each in alive_nodes()})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Ray's own state has no event to wait on here: it is asked again until it is so."""
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, "never came true"
        time.sleep(_ASK_AGAIN_S)


@contextmanager
def ray_cluster(**head_options: Any) -> Iterator[RayCluster]:
    """A cluster with token authentication on; this process is connected to it as a driver."""
    # Short: paths of unix sockets end after 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pd-ray-"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    (folder / "ray").mkdir()
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    reset_auth_token_state()  # Ray read the environment when it was imported
    others = set(psutil.Process().children(recursive=True))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": True,
            "dashboard_port": 0,
            "dashboard_agent_listen_port": _free_port(),  # else one fixed port for all of a host
            "_system_config": _QUICK_TO_MISS_A_NODE,
            **head_options,
        },
    )
    try:
        context = ray.init(address=cluster.address, namespace="tests", log_to_driver=False)
        url = f"http://{context.dashboard_url}"
        yield RayCluster(cluster, cluster.address, url, environment)
    finally:
        ray.shutdown()
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        reset_auth_token_state()
        left = set(psutil.Process().children(recursive=True)) - others
        _, alive = psutil.wait_procs(list(left), timeout=30)
        shutil.rmtree(folder, ignore_errors=True)
        assert not alive, f"processes of the cluster are left: {alive}"
