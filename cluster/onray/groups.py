"""Placement groups: asked for with a deadline, found again by name, given back.

All places of one request are had together or not at all. Ray moves the bundles of a lost node
elsewhere by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from cluster.onray.config import RayConfig
from cluster.onray.placement import Bundle, NodeFacts, PlacementFailed, explain
from pdserve.clock import Clock

_ASK_AGAIN_S = 1.0


async def place(
    name: str,
    bundles: Sequence[Bundle],
    config: RayConfig,
    clock: Clock,
    say: Callable[[str], None],
) -> PlacementGroup:
    """A group with room for all of ``bundles``. What is missing is said as soon as it is seen.

    Raises:
        PlacementFailed: there was no room before ``placement_timeout_s`` was over.
    """
    group: PlacementGroup = placement_group(
        [dict(bundle.amounts) for bundle in bundles],
        strategy=config.strategy,
        name=name,
        lifetime="detached" if config.detached else None,
        bundle_label_selector=[dict(bundle.labels) for bundle in bundles],
    )
    end_s = clock.now() + config.placement_timeout_s
    said: list[str] = []
    try:
        while not await asyncio.to_thread(group.wait, _ASK_AGAIN_S):
            missing = explain(bundles, node_facts(), config.strategy)
            if clock.now() >= end_s:
                raise PlacementFailed(
                    f"no places on the cluster after {config.placement_timeout_s:g} s: "
                    + ("; ".join(missing) or "Ray gives no reason")
                )
            if missing and missing != said:
                say(f"waiting for places: {'; '.join(missing)}")
                said = missing
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def node_facts() -> list[NodeFacts]:
    """Nodes that are alive."""
    available = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        NodeFacts(
            f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})",
            node["Resources"],
            available.get(node["NodeID"], {}),
            node["Labels"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def find_group(name: str) -> PlacementGroup | None:
    try:
        group: PlacementGroup = get_placement_group(name)
    except ValueError:  # Ray's word for "there is none"
        return None
    return group


def is_placed(group: PlacementGroup) -> bool:
    """Whether every bundle has its node; not so while a lost node's are moved."""
    return bool(placement_group_table(group)["state"] == "CREATED")


def give_back(name: str) -> None:
    """Whatever still runs in the group is killed by Ray."""
    if (group := find_group(name)) is not None:
        remove_placement_group(group)
