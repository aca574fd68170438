"""The example services get their places on nodes with as many logical CPUs, GPUs and cards.

Only places: no worker is started.
"""

from __future__ import annotations

from collections import Counter

import pytest
import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from cluster.onray.groups import place
from cluster.onray.placement import Bundle, role_of
from cluster.plan import ServicePlan
from pdserve.clock import MonotonicClock
from support.deploy_files import EXAMPLES, bundles_of, served
from support.ray_cluster import RayCluster, alive_nodes

pytestmark = pytest.mark.ray

ACCELERATOR = "ray.io/accelerator-type"


def plan_in(name: str) -> ServicePlan:
    return served(["python", "-m", "cluster", "serve", f"--config={EXAMPLES / name}"])


async def nodes_by_role(plan: ServicePlan) -> dict[str, Counter[str]]:
    """How many workers of each role lie on each node, once the whole service has its places."""
    bundles: tuple[Bundle, ...] = bundles_of(plan)
    group = await place("examples", bundles, plan.ray, MonotonicClock(), print)
    try:
        lies_on = placement_group_table(group)["bundles_to_node_id"]
        found: dict[str, Counter[str]] = {}
        for number, bundle in enumerate(bundles):
            found.setdefault(role_of(bundle.seats[0]), Counter())[lies_on[number]] += 1
        return found
    finally:
        remove_placement_group(group)


async def test_examples_lie_where_they_say(cluster: RayCluster) -> None:
    nodes = cluster.add_nodes(
        {"num_cpus": 16, "num_gpus": 8},
        *({"num_cpus": 8, "num_gpus": 4, "labels": {ACCELERATOR: card}}
          for card in ("H100", "H100", "H20", "H20")),
    )  # fmt: skip
    try:
        cards = {node["NodeID"]: node["Labels"].get(ACCELERATOR) for node in alive_nodes()}
        one_node = await nodes_by_role(plan_in("ray-2p6d.toml"))
        (everything,) = {node for on in one_node.values() for node in on}
        assert cards[everything] is None
        assert (one_node["prefill"].total(), one_node["decode"].total()) == (2, 6)
        unlike = await nodes_by_role(plan_in("ray-4-nodes.toml"))
        for role, card in (("prefill", "H100"), ("decode", "H20")):
            assert [cards[node] for node in unlike[role]] == [card, card]
            assert list(unlike[role].values()) == [4, 4]
        assert (await nodes_by_role(plan_in("ray-1p1d.toml"))).keys() == unlike.keys()
        assert ray.cluster_resources()["GPU"] == 24
    finally:
        for node in nodes:
            cluster.remove_node(node, in_order=True)
