"""``pdserve serve`` as a child process for the length of a measurement, on free ports.

Up when it says so; drained and waited for at the end, killed if that takes too long. It dies with
this process. Not covered: other hosts (give the scenario a running service instead).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdserve.config import environment_without
from pdserve.errors import ServiceError

_ROOT = Path(__file__).resolve().parents[2]
_FIXED = ("--http-port=0", "--grpc-port=0", "--worker-port=0", "--log-level=warning")
_UP_LINE = "serving "  # what serve says once it can serve; the ready file is there by then
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 30.0
_NUM_TAIL_LINES = 30


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """From the ready file."""

    http_url: str
    grpc_target: str
    model: str
    worker_pids: tuple[tuple[str, int], ...] = ()  # (role, process id) at the start


@contextlib.asynccontextmanager
async def started_service(flags: Sequence[str]) -> AsyncIterator[ServiceFacts]:
    """``flags`` are any of ``pdserve serve``; later ones win.

    Raises:
        ServiceError: it did not come up; holds its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="pdserve-benchmark-") as folder:
        ready = Path(folder) / "ready.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cluster", "serve", *_FIXED, *flags,
            f"--ready-file={ready}", f"--parent-pid={os.getpid()}",
            cwd=_ROOT, env={"GRPC_VERBOSITY": "ERROR", **environment_without(())},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        up = asyncio.Event()
        stopping = asyncio.Event()  # what it says of its end is no news
        reading = asyncio.create_task(
            _read_lines(process, up, stopping), name="lines of the service"
        )
        try:
            await _wait_up(up, reading)
            document = json.loads(ready.read_text(encoding="utf-8"))
            yield ServiceFacts(
                document["http_url"],
                document["grpc_target"],
                document["model"],
                tuple((worker["role"], worker["pid"]) for worker in document["workers"]),
            )
        finally:
            stopping.set()
            await _stop(process)
            await reading


async def _read_lines(
    process: asyncio.subprocess.Process, up: asyncio.Event, stopping: asyncio.Event
) -> list[str]:
    """To the end, so that the service never waits for a reader. The last lines."""
    assert process.stderr is not None
    tail: deque[str] = deque(maxlen=_NUM_TAIL_LINES)
    async for raw in process.stderr:
        line = raw.decode(errors="replace").rstrip()
        tail.append(line)
        if line.startswith(_UP_LINE):
            up.set()
        elif up.is_set() and not stopping.is_set():
            print(f"    service: {line}", file=sys.stderr)
    return list(tail)


async def _wait_up(up: asyncio.Event, reading: asyncio.Task[list[str]]) -> None:
    waiting = asyncio.create_task(up.wait())
    try:
        await asyncio.wait(
            {waiting, reading}, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        waiting.cancel()
    if up.is_set():
        return
    if reading.done():
        raise ServiceError("the service ended at its start:\n" + "\n".join(reading.result()))
    raise ServiceError(f"the service was not up after {_START_TIMEOUT_S:g} s")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
