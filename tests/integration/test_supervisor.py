"""Children with real processes: ready lines, deaths, restarts, stops. No role is needed for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from cluster.child import Child, ChildFailed
from cluster.ready import WorkerReady
from cluster.supervisor import Supervisor
from pdserve.clock import ManualClock, MonotonicClock

pytestmark = pytest.mark.alone

STAND_IN = Path(__file__).resolve().parents[1] / "support" / "role_process.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(STAND_IN.parents[2])}


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(STAND_IN), *arguments]


class Lines(list[str]):
    """What was said, line by line."""

    def holds(self, words: str) -> bool:
        return any(words in line for line in self)


@asynccontextmanager
async def supervised(
    *arguments: str, clock: MonotonicClock | ManualClock | None = None, timeout_s: float = 60.0
) -> AsyncIterator[tuple[Supervisor, Lines]]:
    said = Lines()
    supervisor = Supervisor(
        "worker-0",
        lambda: command(*arguments),
        env=ENVIRONMENT,
        clock=clock or MonotonicClock(),
        say=said.append,
        start_timeout_s=timeout_s,
    )
    try:
        yield supervisor, said
    finally:
        await supervisor.kill()
        assert not psutil.Process().children(recursive=True)


async def test_ready_line_and_prefixed_lines_and_a_clean_stop() -> None:
    async with supervised("serve") as (supervisor, said):
        report = await supervisor.start()
        assert isinstance(report, WorkerReady)
        assert report.pid == supervisor.pid
        assert report.describe() == (
            "stand-in ready: cpu, 1 thread, 1,024 KV blocks of 16 tokens, KV by grpc, "
            f"pid {supervisor.pid}"
        )
        await supervisor.stop(grace_s=30)
        assert said == ["[worker-0] serving", "[worker-0] stopped"]


async def test_a_child_that_dies_at_start_shows_its_error() -> None:
    async with supervised("fail") as (supervisor, said):
        with pytest.raises(ChildFailed, match="worker-0 ended at start with status 3") as caught:
            await supervisor.start()
        assert caught.value.tail == ("no such model: nonesuch",)
        assert said == ["[worker-0] no such model: nonesuch"]


async def test_a_child_that_never_becomes_ready_is_killed() -> None:
    async with supervised("silent", timeout_s=0.5) as (supervisor, _):
        with pytest.raises(ChildFailed, match="not ready within"):
            await supervisor.start()


async def test_a_child_that_says_something_else_is_killed() -> None:
    async with supervised("garbage") as (supervisor, _):
        with pytest.raises(ChildFailed, match="no usable ready line"):
            await supervisor.start()


async def test_a_dead_child_is_started_again_under_a_new_incarnation(tmp_path: Path) -> None:
    async with supervised("die-once", str(tmp_path / "mark")) as (supervisor, said):
        first = await supervisor.start()
        second = await supervisor.next_report(first)
        assert isinstance(first, WorkerReady)
        assert isinstance(second, WorkerReady)
        assert first.incarnation != second.incarnation
        assert said.holds("worker-0 died (signal SIGKILL); starting it again in 0.2 s")
        await supervisor.stop(grace_s=30)


async def test_a_stop_while_waiting_to_start_again(tmp_path: Path) -> None:
    clock = ManualClock()  # never advanced: the wait before the restart does not end
    async with supervised("die-once", str(tmp_path / "mark"), clock=clock) as (supervisor, said):
        await supervisor.start()
        await supervisor.died()
        await supervisor.stop(grace_s=30)
        assert not said.holds("is back")


async def test_a_child_that_ignores_the_stop_is_killed() -> None:
    async with supervised("stubborn") as (supervisor, said):
        await supervisor.start()
        await supervisor.stop(grace_s=0.2)
        assert said.holds("did not end within 0.2 s and is killed")


def test_the_kernel_ends_children_of_a_killed_launcher() -> None:
    """The launcher here is a process that starts one child and is killed by SIGKILL."""
    code = (
        "import asyncio, sys; sys.path[:0] = sys.argv[1:2]\n"
        "from cluster.child import Child\n"
        "import os\n"
        "async def main():\n"
        "    child = await Child.start('c', sys.argv[2:], env=dict(os.environ), say=print)\n"
        "    await child.wait_ready(60)\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", code, str(STAND_IN.parents[2]), *command("stubborn")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as launcher:
        assert launcher.stdout is not None
        numbers = (line for line in launcher.stdout if line.strip().isdecimal())
        child = psutil.Process(int(next(numbers)))
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        psutil.wait_procs([child], timeout=30)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_a_child_can_be_killed_before_its_ready_line_is_read() -> None:
    said = Lines()
    child = await Child.start("c", command("serve"), env=ENVIRONMENT, say=said.append)
    await child.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
