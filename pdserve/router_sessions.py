"""All sessions of one worker: one with each router it serves; routers may join and leave meanwhile.

Each session is ``stay_connected`` (worker_session.py). The worker's own reservation counter decides
over all of them; nothing here knows what a session carries.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from pdserve.clock import Clock
from pdserve.links import WorkerLink
from pdserve.roles import WorkerRole
from pdserve.worker_session import stay_connected

FAREWELL_S = 2.0  # for a Goodbye to leave


@dataclass(frozen=True, slots=True)
class _Session:
    task: asyncio.Task[None]
    leave: asyncio.Event


class RouterSessions:
    """``dial`` opens a link to a router by its address. Ends with ``close``."""

    def __init__(
        self, role: WorkerRole, dial: Callable[[str], Awaitable[WorkerLink]], clock: Clock
    ) -> None:
        self._role = role
        self._dial = dial
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        self._changed = asyncio.Event()

    @property
    def routers(self) -> tuple[str, ...]:
        """Addresses, in the order of joining."""
        return tuple(self._sessions)

    def join(self, router: str) -> None:
        """Serve this router too; nothing happens if it is served already."""
        if router in self._sessions:
            return
        leave = asyncio.Event()
        work = stay_connected(
            functools.partial(self._dial, router),
            self._role,
            self._clock,
            leave=leave,
            router=router,
        )
        task = asyncio.create_task(work, name=f"session-{router}")
        self._sessions[router] = _Session(task, leave)
        self._changed.set()

    async def serve(self, routers: Iterable[str]) -> None:
        """Serve exactly these from now on: the new ones join before the others are left."""
        wanted = tuple(routers)
        for router in wanted:
            self.join(router)
        gone = [self._sessions.pop(router) for router in self.routers if router not in wanted]
        self._changed.set()
        await self._say_goodbye(gone)
        await _end(gone)

    async def ended_or(self, loop_ended: Awaitable[None]) -> None:
        """Return when every session, or the engine's loop, has ended for good.

        Raises:
            IncompatibleWorker: a router refused this worker.
        """
        ends = {asyncio.ensure_future(end) for end in (self.ended(), loop_ended)}
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def ended(self) -> None:
        """Return when every session ended for good (after a drain).

        Raises:
            IncompatibleWorker: a router refused this worker.
        """
        while pending := self._pending():
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({*pending, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()

    async def leave(self) -> None:
        """Goodbye to every router."""
        await self._say_goodbye(list(self._sessions.values()))

    async def close(self) -> None:
        """End what is left, without a word."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        await _end(sessions)

    def _pending(self) -> set[asyncio.Task[None]]:
        tasks = {session.task for session in self._sessions.values()}
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
        return {task for task in tasks if not task.done()}

    async def _say_goodbye(self, sessions: list[_Session]) -> None:
        for session in sessions:
            session.leave.set()
        if sessions:
            await asyncio.wait([session.task for session in sessions], timeout=FAREWELL_S)


async def _end(sessions: list[_Session]) -> None:
    for session in sessions:
        session.task.cancel()
    await asyncio.gather(*(session.task for session in sessions), return_exceptions=True)
