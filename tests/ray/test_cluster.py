"""The cluster that the other tests here share is one, and asks for its token."""

from __future__ import annotations

import httpx
import pytest
import ray

from support.ray_cluster import RayCluster, alive_nodes

pytestmark = pytest.mark.ray


def test_nodes_come_and_go(cluster: RayCluster) -> None:
    assert ray.cluster_resources()["CPU"] == 2
    node = cluster.add_node(num_cpus=1, num_gpus=4, labels={"zone": "far"})
    assert ray.cluster_resources()["GPU"] == 4
    cluster.remove_node(node)
    assert len(alive_nodes()) == 1


def test_jobs_are_refused_without_the_token(cluster: RayCluster) -> None:
    answer = httpx.get(f"{cluster.dashboard_url}/api/jobs/")
    assert answer.status_code == httpx.codes.UNAUTHORIZED
