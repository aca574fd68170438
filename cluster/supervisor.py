"""Keeps one role's process alive: start, ready, and start again with backoff when it dies.

    starting -> up -> died -> (backoff) -> starting ...      stop: terminate, grace, kill

A new process is a new incarnation by itself. Does not know what the role is or where its ports
are; the command line is asked for anew at each start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from cluster.backoff import RestartBackoff
from cluster.child import Child, ChildFailed, Say, describe_status
from cluster.ready import ReadyReport
from pdserve.clock import Clock


class Supervisor:
    """One process at a time. ``start`` once, then it is kept alive until ``stop`` or ``kill``."""

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        *,
        env: Mapping[str, str],
        clock: Clock,
        say: Say,
        start_timeout_s: float,
    ) -> None:
        self.name = name
        self._command = command
        self._env = env
        self._clock = clock
        self._say = say
        self._start_timeout_s = start_timeout_s
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._backoff = RestartBackoff()
        self._started_s = 0.0
        self._is_up = False
        self._changed = asyncio.Condition()
        self.report: ReadyReport | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    async def start(self) -> ReadyReport:
        """Start the process; from its ready line on it is kept alive.

        Raises:
            ChildFailed: it did not become ready; it is not tried again.
        """
        report = await self._launch()
        self._keeper = asyncio.create_task(self._keep_alive(), name=f"keeper of {self.name}")
        return report

    async def died(self) -> None:
        """Returns when the process that runs now has died."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_up)

    async def next_report(self, last: ReadyReport | None) -> ReadyReport:
        """The report of a process that is not the one ``last`` came from; None: of any."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_up and self.report != last)
        assert self.report is not None
        return self.report

    def send_signal(self, number: int) -> None:
        """To the process that runs now; what follows from it is the process's."""
        if self._child is not None:
            self._child.send_signal(number)

    async def stop(self, grace_s: float) -> None:
        """Terminate, and kill what is not gone after ``grace_s``."""
        await self._let_go()
        if self._child is None:
            return
        self._child.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await self._child.wait()
        except TimeoutError:
            self._say(f"{self.name} did not end within {grace_s:g} s and is killed")
            await self._child.kill()

    async def kill(self) -> None:
        await self._let_go()
        if self._child is not None:
            await self._child.kill()

    async def _let_go(self) -> None:
        """From here on a death is not answered by a start."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    async def _launch(self) -> ReadyReport:
        self._started_s = self._clock.now()
        self._child = await Child.start(self.name, self._command(), env=self._env, say=self._say)
        self.report = await self._child.wait_ready(self._start_timeout_s)
        await self._mark(up=True)
        return self.report

    async def _mark(self, *, up: bool) -> None:
        async with self._changed:
            self._is_up = up
            self._changed.notify_all()

    async def _keep_alive(self) -> None:
        assert self._child is not None
        while True:
            status = await self._child.wait()
            await self._mark(up=False)
            delay_s = self._backoff.delay_s(self._clock.now() - self._started_s)
            self._say(
                f"{self.name} died ({describe_status(status)}); starting it again in {delay_s:g} s"
            )
            await self._clock.sleep(delay_s)
            try:
                await self._launch()
            except (ChildFailed, OSError) as error:
                self._say(f"{self.name} cannot be started: {error}")
            else:
                self._say(f"{self.name} is back, pid {self.pid}")
