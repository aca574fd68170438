"""Files of cluster/deploy and cluster/examples, read: manifests, images, commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import start

from cluster.onray.placement import ROLES, Bundle, NodeFacts, needs_of, plan_bundles
from cluster.plan import ServicePlan, read_plan, service_parser
from support.source_tree import ROOT

DEPLOY = ROOT / "cluster" / "deploy"
EXAMPLES = ROOT / "cluster" / "examples"
INSTALLED = "/opt/pdserve"  # where the image has this checkout
_GIB = 2**30


def manifests(name: str) -> list[dict[str, Any]]:
    """The objects of one file."""
    with (DEPLOY / name).open() as text:
        return list(yaml.safe_load_all(text))


def the(kind: str, objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def submission(words: Sequence[str]) -> dict[str, Any]:
    """``ray job submit`` by its own parser, without running it.

    Raises click's errors: an option that it does not know."""
    assert list(words[:3]) == ["ray", "job", "submit"]
    return dict(submit.make_context("submit", list(words[3:])).params)


def ray_start(words: Sequence[str]) -> dict[str, Any]:
    """The same for ``ray start``."""
    assert list(words[:2]) == ["ray", "start"]
    return dict(start.make_context("start", list(words[2:])).params)


def served(words: Sequence[str]) -> ServicePlan:
    """The plan of ``python -m cluster serve ...``.

    Raises ConfigError: an option is unknown or unusable."""
    assert list(words[:4]) == ["python", "-m", "cluster", "serve"]
    here = [word.replace(INSTALLED, str(ROOT)) for word in words[4:]]
    return read_plan(service_parser("test", "about").parse(here))


def bundles_of(plan: ServicePlan) -> tuple[Bundle, ...]:
    """What the service asks of a cluster at its start."""
    serve = plan.serve
    counts = (plan.ray.num_routers, serve.prefill_workers, serve.decode_workers)
    seats = [f"{role}-{n}" for role, count in zip(ROLES, counts, strict=True) for n in range(count)]
    return plan_bundles(seats, needs_of(plan), pairs=plan.ray.pairs)


def commands_in(comments: str, first: str) -> list[list[str]]:
    """Commands that begin with ``first`` in lines of comments, continued lines joined."""
    plain = "\n".join(line.removeprefix("#").strip() for line in comments.splitlines()
                      if line.startswith("#"))  # fmt: skip
    joined = plain.replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line.startswith(first)]


def nodes_of(cluster: dict[str, Any]) -> list[NodeFacts]:
    """What the nodes of a RayCluster's spec offer; a card's name is that of its group."""
    head = cluster["headGroupSpec"]
    cpus = float(head["rayStartParams"]["num-cpus"])
    extra = {"node:__internal_head__": 1.0}
    found = [_node("head", {**_limits(head), "CPU": cpus, **extra}, {})]
    for group in cluster["workerGroupSpecs"]:
        labels = {"ray.io/accelerator-type": group["groupName"].upper()}
        for number in range(group["replicas"]):
            found.append(_node(f"{group['groupName']}-{number}", _limits(group), labels))
    return found


def _limits(group: dict[str, Any]) -> dict[str, float]:
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    return {
        "CPU": float(limits["cpu"]),
        "GPU": float(limits.get("nvidia.com/gpu", 0)),
        "memory": float(limits["memory"].removesuffix("Gi")) * _GIB,
    }


def _node(name: str, amounts: dict[str, float], labels: dict[str, str]) -> NodeFacts:
    return NodeFacts(name, amounts, amounts, labels)


@dataclass(frozen=True)
class Instruction:
    """One of a Dockerfile: ``RUN``, and the words after it."""

    name: str
    text: str


def dockerfile(path: Path) -> Iterator[Instruction]:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, text = line.strip().partition(" ")
            assert re.fullmatch("[A-Z]+", name), line
            yield Instruction(name, text.strip())
