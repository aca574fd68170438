"""``pdserve cluster status|scale|drain|stop``: a running service on a Ray cluster.

    pdserve cluster status
    pdserve cluster scale --prefill 2 --decode 3
    pdserve cluster drain decode-1
    pdserve cluster stop

Runs on a host of the cluster. Each command returns when what it asked for is done.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence

from cluster.onray.calls import answer
from cluster.onray.config import ClusterConfig
from cluster.onray.session import connect, disconnect, find_controller
from cluster.onray.view import ServiceView
from pdserve.config import build_config
from pdserve.errors import ConfigError
from pdserve.flags import FlagParser

ACTIONS = ("status", "scale", "drain", "stop")


def run_cluster(argv: Sequence[str]) -> int:
    parser = FlagParser("pdserve cluster", __doc__.splitlines()[0])
    parser.add_positional("action", "what to do", choices=ACTIONS)
    parser.add_options("options", ClusterConfig)
    # The worker of `drain WORKER` is its last word; the parser knows one positional.
    words = [word for word in argv if not word.startswith("-")]
    worker = words[1] if words[:1] == ["drain"] and len(words) > 1 else ""
    sources = parser.parse([word for word in argv if not worker or word != worker])
    action = str(sources.flags["action"])
    config = build_config(ClusterConfig, "cluster", sources)
    if action == "drain" and not worker:
        raise ConfigError("drain WORKER: name one, e.g. pdserve cluster drain decode-1")
    connect(config.address, _say, upload=False, may_start=False)
    try:
        view = asyncio.run(_act(action, worker, config))
    finally:
        disconnect()
    if view is not None:
        print(json.dumps(dataclasses.asdict(view), indent=1) if config.json else view.describe())
    return 0


async def _act(action: str, worker: str, config: ClusterConfig) -> ServiceView | None:
    controller = find_controller(config.service)
    view: ServiceView
    match action:
        case "scale":
            view = await answer(controller.scale.remote(_counts(config)))
        case "drain":
            view = await answer(controller.drain.remote(worker))
        case "stop":
            await answer(controller.end.remote())
            _say(f"{config.service} stopped")
            return None
        case _:
            view = await answer(controller.status.remote())
    return view


def _counts(config: ClusterConfig) -> dict[str, int]:
    asked = {"router": config.router, "prefill": config.prefill, "decode": config.decode}
    counts = {role: count for role, count in asked.items() if count > 0}
    if not counts:
        raise ConfigError("scale: say how many, with --prefill, --decode or --router")
    return counts


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
