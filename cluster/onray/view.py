"""What ``pdserve cluster status`` shows of a service on Ray: places, processes, what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.ready import ReadyReport, RouterReady, WorkerReady
from cluster.service import ServiceAddress
from pdserve.types import WorkerStatus


@dataclass(frozen=True, slots=True)
class SeatView:
    """One wanted process. ``launch`` counts its starts; ``report``: None while it is not up."""

    seat: str
    phase: str  # "starting" | "up" | "down" | "draining"
    launch: int
    host: str = ""
    node_id: str = ""
    pid: int = 0
    report: ReadyReport | None = None
    problem: str = ""
    status: WorkerStatus | None = None


@dataclass(frozen=True, slots=True)
class ServiceView:
    """The whole."""

    service: str
    phase: str  # "starting" | "up" | "stopping"
    mode: str
    seats: tuple[SeatView, ...]
    free_places: tuple[str, ...]  # reserved by earlier, greater counts
    missing: tuple[str, ...]  # why places are not had

    @property
    def addresses(self) -> tuple[ServiceAddress, ...]:
        """Of the routers that are up."""
        reports = (seat.report for seat in self.seats)
        return tuple(ServiceAddress.of(r) for r in reports if isinstance(r, RouterReady))

    @property
    def workers(self) -> tuple[WorkerReady, ...]:
        reports = (seat.report for seat in self.seats)
        return tuple(report for report in reports if isinstance(report, WorkerReady))

    def describe(self) -> str:
        """Lines for people."""
        head = [f"{self.service}: {self.phase}, {self.mode}"]
        head += [f"{each.model_name}: {each.describe()}" for each in self.addresses]
        rows = [_COLUMNS, *(_row(seat) for seat in self.seats)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        tail = [f"{seat.seat}: {seat.problem}" for seat in self.seats if seat.problem]
        if self.free_places:
            tail.append(f"reserved and not used: {', '.join(self.free_places)}")
        tail += [f"no place: {reason}" for reason in self.missing]
        return "\n".join([*head, "", *lines, *([""] if tail else []), *tail])


_COLUMNS = (
    "seat", "phase", "starts", "host", "pid", "free/total blocks", "running", "queued", "parked",
    "exported",
)  # fmt: skip


def _row(seat: SeatView) -> tuple[str, ...]:
    status = seat.status
    load = ("", "", "", "", "")
    if status is not None:
        load = (
            f"{status.free_blocks}/{status.total_blocks}",
            str(status.num_running),
            str(status.num_queued),
            str(status.num_parked),
            str(status.num_exported),
        )
    pid = str(seat.pid) if seat.pid else ""
    return (seat.seat, seat.phase, str(seat.launch), seat.host, pid, *load)
