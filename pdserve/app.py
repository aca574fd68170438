"""A process of the service from outside: its signals, its end with its parent, its ready line.

    first SIGTERM or SIGINT    drain: finish what runs, admit nothing
    second                     stop now

Whoever starts a role may pass ``--ready-fd N``: one JSON line is written there when the role is
ready, and the descriptor is closed. With ``--parent-pid P`` the process is killed when P dies,
even by SIGKILL. Knows no role. Not covered: daemons, pid files, anything but Linux.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from pdserve.config import Option
from pdserve.errors import PdserveError

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    TABLE: ClassVar = "process"

    drain_grace_s: Annotated[
        float, Option("longest time for running requests to finish at a stop", unit="s", low=0)
    ] = 30.0
    ready_fd: Annotated[
        int, Option("descriptor that gets one line of JSON when ready; -1: none", low=-1)
    ] = -1
    parent_pid: Annotated[
        int, Option("process whose death ends this one; 0: none", low=0)
    ] = 0  # fmt: skip


class ParentGone(PdserveError):
    """The process that started this one died before it could be watched."""

    code = "parent_gone"


class StopSignals:
    """``drain`` is set by the first signal, ``now`` by the second."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()

    def notice(self) -> None:
        (self.now if self.drain.is_set() else self.drain).set()


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """SIGINT and SIGTERM of this process as events of the running loop."""
    signals = StopSignals()
    loop = asyncio.get_running_loop()
    watched = (signal.SIGINT, signal.SIGTERM)
    for number in watched:
        loop.add_signal_handler(number, signals.notice)
    try:
        yield signals
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


class App(Protocol):
    async def drain(self, grace_s: float) -> None: ...


async def serve_until_stopped(app: App, signals: StopSignals, grace_s: float) -> None:
    """Return after a drain, or at once after a second signal."""
    await signals.drain.wait()
    await unless(signals.now, app.drain(grace_s))


async def unless(event: asyncio.Event, work: Awaitable[object]) -> bool:
    """Wait for ``work``; cancel it if ``event`` comes first. True if the work was finished."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


def end_with_parent(config: ProcessConfig) -> None:
    """Let the kernel kill this process when its parent dies.

    Raises:
        ParentGone: it is dead already.
    """
    if config.parent_pid == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died between fork and prctl: then nobody would tell.
    if os.getppid() != config.parent_pid:
        raise ParentGone(f"process {config.parent_pid} is gone")


def say_ready(config: ProcessConfig, facts: Mapping[str, object]) -> None:
    """Write ``facts`` as one line to ``--ready-fd`` and close it."""
    if config.ready_fd < 0:
        return
    line = json.dumps(facts, separators=(",", ":")) + "\n"
    with os.fdopen(config.ready_fd, "w", encoding="utf-8") as pipe:
        pipe.write(line)
