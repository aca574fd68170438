"""``pdserve status``: workers, load, blocks and tickets in flight of a running service."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from cluster.commands.reaching import reaching
from cluster.config import StatusConfig
from pdserve.config import build_config
from pdserve.flags import FlagParser
from pdserve.public import ClusterStatusView, KvPairView, WorkerView
from router.client import Client


def run_status(argv: Sequence[str]) -> int:
    parser = FlagParser("pdserve status", "Workers, load, blocks and tickets of a service.")
    parser.add_options("options", StatusConfig)
    config = build_config(StatusConfig, "status", parser.parse(argv))
    with reaching(config.grpc_target), Client(config.grpc_target) as client:
        view = client.cluster_status()
    print(json.dumps(dataclasses.asdict(view), indent=1) if config.json else status_text(view))
    return 0


_PAIR_COLUMNS = (
    "KV from",
    "to",
    "transport",
    "GB/s (of MB)",
    "requests",
    "fell back",
    "MB",
    "GB/s in requests",
)
_COLUMNS = (
    "worker", "role", "free/total blocks", "cached", "reserved", "queued", "running", "parked",
    "exported", "steps", "device",
)  # fmt: skip


def status_text(view: ClusterStatusView) -> str:
    state = "can serve" if view.can_serve else "cannot serve now"
    state += f": {view.problem}" if view.problem else ""
    head = (
        f"{view.model.name}: {view.mode}, {state}\n"
        f"requests: {view.num_in_flight} in flight, {view.num_queued} of them queued; "
        f"tickets: {view.num_tickets}"
    )
    lines = [head, "", *_table([_COLUMNS, *(_row(worker) for worker in view.workers)])]
    if view.kv_pairs:
        lines += ["", *_table([_PAIR_COLUMNS, *(_pair(pair) for pair in view.kv_pairs)])]
    for worker in view.refused:
        lines += ["", f"refused: {worker.worker_id or worker.peer}: {worker.problem}"]
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _pair(pair: KvPairView) -> tuple[str, ...]:
    return (
        pair.prefill_worker,
        pair.decode_worker,
        pair.transport,
        _measured(pair),
        str(pair.num_reads),
        str(pair.num_fallbacks),
        f"{pair.num_bytes / 1e6:.1f}",
        _rate(pair.read_bytes_per_s),
    )


def _measured(pair: KvPairView) -> str:
    of_bytes = f" ({pair.probe_bytes / 1e6:.1f})" if pair.probe_bytes else ""
    return _rate(pair.probe_bytes_per_s) + of_bytes


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.2f}" if bytes_per_s else "-"


def _note(worker: WorkerView) -> str:
    return " (silent)" if worker.silent else " (draining)" if worker.draining else ""


def _row(worker: WorkerView) -> tuple[str, ...]:
    status = worker.status
    return (
        worker.worker_id + _note(worker),
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
