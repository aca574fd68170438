"""Services for integration tests: real processes or one process, on free ports, gone afterwards."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from cluster.child import ChildFailed
from cluster.commands.serve import prepare_once
from cluster.inproc import InprocService
from cluster.local import LocalService
from cluster.plan import ServicePlan, read_plan, service_parser
from cluster.spec import Host
from pdserve.clock import MonotonicClock
from support.source_tree import ROOT

FREE_PORTS = ("--http-port=0", "--grpc-port=0", "--worker-port=0")
FAKE = ("--engine=fake", "--kv-memory=4")


def plan_of(*flags: str) -> ServicePlan:
    return read_plan(service_parser("test", "about").parse([*FREE_PORTS, *flags]))


@asynccontextmanager
async def local_service(*flags: str) -> AsyncIterator[tuple[LocalService, list[str]]]:
    """A started service of processes, and the lines it has said."""
    said: list[str] = []
    before = set(children())
    plan = prepare_once(plan_of(*FAKE, "--drain-grace-s=10", *flags), said.append)
    spec = plan.cluster_spec(Host((0, 1)))
    service = LocalService(plan, spec, clock=MonotonicClock(), say=said.append)
    try:
        await service.start()
        yield service, said
    except ChildFailed as error:
        error.add_note("\n".join(said))
        raise
    finally:
        await service.kill()
        assert set(children()) <= before, "processes are left"


@asynccontextmanager
async def inproc_service(*flags: str) -> AsyncIterator[InprocService]:
    """A started service in this process."""
    plan = plan_of(*FAKE, *flags)
    spec = plan.cluster_spec(
        Host((0, 1)),
    )
    service = InprocService(plan, spec, clock=MonotonicClock(), say=lambda line: None)
    try:
        await service.start()
        yield service
    finally:
        await service.kill()


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


class Command:
    """``python -m cluster ...`` as a process whose standard error is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line_with(self, words: str) -> str:
        """The next line that holds ``words``; an AssertionError with all lines if none comes."""
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            self.lines.append(raw.decode().rstrip())
            if words in self.lines[-1]:
                return self.lines[-1]
        raise AssertionError("no line with " + repr(words) + " in:\n" + "\n".join(self.lines))

    async def rest(self) -> int:
        """Read to the end; the exit status."""
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            self.lines.append(raw.decode().rstrip())
        return await self.process.wait()


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cluster", *arguments,
        cwd=ROOT, env=dict(os.environ), stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    below = psutil.Process(process.pid)
    try:
        yield Command(process)
    finally:
        left = below.children(recursive=True) if process.returncode is None else []
        if process.returncode is None:
            process.kill()
        await process.communicate()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, left, timeout=30)
        assert not alive, f"still running: {alive}"
