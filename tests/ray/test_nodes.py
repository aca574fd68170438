"""Several raylets as nodes: workers lie where cards and labels are, and move if a node is lost.

Requests here never have both workers on the lost node: such ones end, as protocol.md 2 says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from router.client import AsyncClient
from support.ray_cluster import RayCluster
from support.ray_service import served_on_ray
from support.remote_service import Streams, assert_settled, prompt
from support.trio import eventually

pytestmark = pytest.mark.ray

PROMPTS = [prompt(number) for number in range(16)]
STEPS = ("--fake-decode-ms=10", "--fake-prefill-us=100")
ON_HEAD = "node:__internal_head__=0.001"


class Nodes:
    """Those beside the head, by id."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self.there: dict[str, Any] = {}

    def add(self, **options: Any) -> str:
        node = self._cluster.add_node(**options)
        self.there[node.node_id] = node
        return str(node.node_id)

    def lose(self, node_id: str) -> None:
        self._cluster.remove_node(self.there.pop(node_id))


@contextmanager
def nodes_of(cluster: RayCluster) -> Iterator[Nodes]:
    nodes = Nodes(cluster)
    try:
        yield nodes
    finally:
        for node in nodes.there.values():
            cluster.remove_node(node, in_order=True)


async def test_decode_workers_of_a_lost_node_come_back_on_another(
    cluster: RayCluster, tmp_path: Path
) -> None:
    with nodes_of(cluster) as nodes:
        nodes.add(num_cpus=1, num_gpus=2)
        nodes.add(num_cpus=1, num_gpus=2)
        async with (
            served_on_ray(
                cluster, tmp_path, *STEPS, "--strategy=SPREAD", "--decode-workers=2",
                "--decode-num-gpus=1",
                f"--router-resource={ON_HEAD}", f"--prefill-resource={ON_HEAD}",
            ) as served,
            AsyncClient(served.grpc_target) as client,
        ):  # fmt: skip
            lost, kept = await served.seat("decode-0"), await served.seat("decode-1")
            assert {lost.node_id, kept.node_id} == set(nodes.there)
            streams = Streams(client, PROMPTS, 100)
            await eventually(lambda: streams.num_tokens_read >= 64, timeout_s=60)
            nodes.lose(lost.node_id)
            moved = await served.seat_after("decode-0", lost.launch)
            assert moved.node_id == kept.node_id
            await streams.assert_right()
            assert (await served.seat("decode-1")).pid == kept.pid
            await assert_settled(client, "prefill-0", "decode-0", "decode-1")


async def test_a_prefill_worker_waits_for_a_node_like_the_lost_one(
    cluster: RayCluster, tmp_path: Path
) -> None:
    card = {"ray.io/accelerator-type": "H100"}
    with nodes_of(cluster) as nodes:
        nodes.add(num_cpus=1, num_gpus=1, labels=card)
        async with (
            served_on_ray(
                cluster, tmp_path, *STEPS, "--prefill-num-gpus=1",
                "--prefill-label=ray.io/accelerator-type=H100",
                f"--router-resource={ON_HEAD}", f"--decode-resource={ON_HEAD}",
            ) as served,
            AsyncClient(served.grpc_target) as client,
        ):  # fmt: skip
            lost = await served.seat("prefill-0")
            assert {lost.node_id} == set(nodes.there)
            streams = Streams(client, PROMPTS, 100)
            await eventually(lambda: streams.num_tokens_read >= 32, timeout_s=60)
            nodes.lose(lost.node_id)
            missing = await served.missing()
            assert "prefill-0" in missing
            assert "ray.io/accelerator-type is not set" in missing
            more = Streams(client, PROMPTS[:4], 20)
            node_id = nodes.add(num_cpus=1, num_gpus=1, labels=card)
            moved = await served.seat_after("prefill-0", lost.launch)
            assert moved.node_id == node_id
            await streams.assert_right()
            await more.assert_right()
            await assert_settled(client, "prefill-0", "decode-0")
