"""Actors of a service by name, all in one namespace: which there are, and whether they serve."""

from __future__ import annotations

from typing import Any

import ray

from cluster.onray.actor import Started
from cluster.onray.calls import answer
from cluster.onray.state import NAMESPACE
from pdserve.errors import PdserveError

_CALL_S = 10.0


def controller_name(service: str) -> str:
    return f"{service}:controller"


def actor_name(service: str, seat: str, launch: int) -> str:
    """Another one at every start: Ray frees the name of a dead actor a little later."""
    return f"{service}:{seat}:{launch}"


def kill_actor(actor: Any) -> None:
    ray.kill(actor, no_restart=True)


def services() -> list[str]:
    """Names of the services of this cluster."""
    suffix = controller_name("")
    return sorted(name.removesuffix(suffix) for name in _names() if name.endswith(suffix))


def living_roles(service: str) -> list[str]:
    """Names of this service's roles that live."""
    return [
        name
        for name in _names()
        if name.startswith(f"{service}:") and name != controller_name(service)
    ]


def _names() -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in found if each["namespace"] == NAMESPACE]


async def started_actor(name: str) -> tuple[Any, Started] | None:
    """The actor and what it said at its start, if it serves."""
    try:
        actor = ray.get_actor(name, NAMESPACE)
        started = await answer(actor.started.remote(), _CALL_S)
    except (ValueError, PdserveError, TimeoutError):
        return None  # Ray's ValueError: no actor of that name
    return (actor, started) if started is not None else None
