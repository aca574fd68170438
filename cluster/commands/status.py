"""``pdserve status``: workers, load, blocks and tickets in flight of a running service."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from cluster.commands.reaching import reaching
from cluster.config import StatusConfig
from pdserve.config import build_config
from pdserve.flags import FlagParser
from pdserve.public import ClusterStatusView, WorkerView
from router.client import Client


def run_status(argv: Sequence[str]) -> int:
    parser = FlagParser("pdserve status", "Workers, load, blocks and tickets of a service.")
    parser.add_options("options", StatusConfig)
    config = build_config(StatusConfig, "status", parser.parse(argv))
    with reaching(config.grpc_target), Client(config.grpc_target) as client:
        view = client.cluster_status()
    print(json.dumps(dataclasses.asdict(view), indent=1) if config.json else _text(view))
    return 0


_COLUMNS = (
    "worker", "role", "free/total blocks", "cached", "reserved", "queued", "running", "parked",
    "exported", "steps", "device",
)  # fmt: skip


def _text(view: ClusterStatusView) -> str:
    state = "can serve" if view.can_serve else "cannot serve now"
    state += ", draining" if view.draining else ""
    head = (
        f"{view.model.name}: {view.mode}, {state}\n"
        f"requests: {view.num_in_flight} in flight, {view.num_queued} of them queued; "
        f"tickets: {view.num_tickets}"
    )
    rows = [_COLUMNS, *(_row(worker) for worker in view.workers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([head, "", *lines])


def _row(worker: WorkerView) -> tuple[str, ...]:
    status = worker.status
    return (
        worker.worker_id + (" (draining)" if worker.draining else ""),
        worker.role.value,
        f"{status.free_blocks}/{status.total_blocks}",
        str(status.cached_blocks),
        str(status.reserved_blocks),
        str(status.num_queued),
        str(status.num_running),
        str(status.num_parked),
        str(status.num_exported),
        str(status.step),
        worker.device,
    )
