"""Sends jobs to a service: a fixed number at a time, or as they fall due, whatever is running.

Errors of single requests become records; the run goes on. Not covered: several client processes
(the client shares the machine with what it measures, see README.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from cluster.load.arrivals import Job
from cluster.load.faces import RequestFace
from cluster.load.records import RequestRecord
from pdserve.errors import PdserveError
from pdserve.request_timing import RequestTiming


@dataclass(frozen=True, slots=True)
class Sender:
    """One run's clock and its way to the service. Make it when the run starts."""

    face: RequestFace
    timeout_s: float
    started_s: float

    @classmethod
    def start(cls, face: RequestFace, timeout_s: float) -> Sender:
        return cls(face, timeout_s, time.perf_counter())

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started_s

    async def send(self, job: Job, *, kind: str = "load", due_s: float | None = None
                   ) -> RequestRecord:  # fmt: skip
        """One request to its end. ``due_s`` None: due now."""
        sent_s = self.now()
        arrivals: list[tuple[float, int]] = []
        timing: RequestTiming | None = None
        error = ""
        try:
            async with asyncio.timeout(self.timeout_s), aclosing(self.face.stream(job)) as chunks:
                async for chunk in chunks:
                    if chunk.num_tokens:
                        arrivals.append((self.now(), chunk.num_tokens))
                    timing = chunk.timing or timing
        except PdserveError as failure:
            error = failure.code
        except TimeoutError:
            error = "client_timeout"
        num_tokens = sum(count for _, count in arrivals)
        if not error and num_tokens != job.max_tokens:
            error = "wrong_token_count"
        return RequestRecord(
            kind, sent_s if due_s is None else due_s, sent_s, self.now(), tuple(arrivals), error,
            timing,
        )  # fmt: skip

    async def wait_until(self, time_s: float) -> None:
        if (left_s := time_s - self.now()) > 0:
            await asyncio.sleep(left_s)


async def closed_loop(sender: Sender, jobs: Sequence[Job], concurrency: int) -> list[RequestRecord]:
    """``concurrency`` clients, each with one request at a time, until all jobs are done."""
    records: list[RequestRecord] = []
    waiting = iter(jobs)

    async def client() -> None:
        for job in waiting:
            records.append(await sender.send(job))

    async with asyncio.TaskGroup() as clients:
        for _ in range(min(concurrency, len(jobs))):
            clients.create_task(client())
    return records


async def open_loop(
    sender: Sender, jobs: Sequence[Job], offsets_s: Sequence[float], *, kind: str = "load"
) -> list[RequestRecord]:
    """Each job at its own time after now, however many are running. In order of arrival."""
    began_s = sender.now()
    tasks: list[asyncio.Task[RequestRecord]] = []
    async with asyncio.TaskGroup() as requests:
        for job, offset_s in zip(jobs, offsets_s, strict=True):
            due_s = began_s + offset_s
            await sender.wait_until(due_s)
            tasks.append(requests.create_task(sender.send(job, kind=kind, due_s=due_s)))
    return [task.result() for task in tasks]
