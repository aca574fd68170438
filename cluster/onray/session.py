"""The connection of a driver or a command to a Ray cluster, and the controller it finds there.

The token of a cluster that asks for one is Ray's own matter (RAY_AUTH_MODE, RAY_AUTH_TOKEN or
RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token), the same for ``ray`` commands and for these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from cluster.child import Say
from cluster.onray.actors import controller_name, services
from cluster.onray.state import NAMESPACE, forget_all_but
from pdserve.errors import ConfigError, PdserveError

_UPLOADED = "_ray_pkg_"  # how Ray names the folder of an upload


class ClusterUnreachable(PdserveError):
    """There is no Ray cluster at the address, or it does not let this process in."""

    code = "cluster_unreachable"


def connect(address: str, say: Say, *, upload: bool, may_start: bool) -> None:
    """Make this process a driver. Blocks for some seconds.

    ``upload``: nodes get this checkout. ``may_start``: with no cluster to be found, start one here,
    which ends with ``disconnect``.

    Raises:
        ClusterUnreachable: none was found, or it refused.
    """
    try:
        ray.init(
            address=address or "auto",
            namespace=NAMESPACE,
            runtime_env=_what_to_send() if upload else None,
        )
    except ConnectionError as error:
        if address or not may_start:
            raise ClusterUnreachable(f"no Ray cluster at {address or 'hand'}: {error}") from error
        say("no Ray cluster is running: starting one on this host")
        ray.init(address="local", namespace=NAMESPACE)
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise ClusterUnreachable(f"Ray cluster at {address or 'hand'}: {error}") from error


def disconnect() -> None:
    ray.shutdown()


def find_controller(service: str) -> Any:
    """Handle of the controller.

    Raises:
        ConfigError: no such service runs here; names those that do.
    """
    others = services()
    forget_all_but(others)
    try:
        return ray.get_actor(controller_name(service), NAMESPACE)
    except ValueError:  # Ray's word for "there is none"
        there = f"; there is {', '.join(others)}" if others else "; there is none"
        raise ConfigError(f"no service {service!r} on this cluster{there}") from None


def _what_to_send() -> dict[str, Any] | None:
    """This checkout but for what .gitignore and .rayignore name; nothing where it came by an upload
    itself, or is installed on every node."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file() or _UPLOADED in str(root):
        return None
    return {"working_dir": str(root)}
