"""The router's end of workers' sessions, whatever carries them.

    worker_service.py (gRPC), local_sessions.py (a socket of this host)  --link-->  SessionHost
                                                                    on_link(link): the pool

A session lives as long as its owner (``on_link``) holds it and its connection lives. What a worker
is told at its end is the link's ``verdict``, which the carrier says in its own way. Not known here:
what is said over a session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pdserve.errors import PdserveError, WorkerLost
from pdserve.links import RouterLink
from pdserve.log import event_log

# How long a session's owner may take to notice that its link is closed.
LEAVE_S = 5.0

_log = event_log(__name__)


class HostedLink(RouterLink, Protocol):
    """A link as its carrier and the host see it."""

    @property
    def closed(self) -> asyncio.Event:
        """Set once ``close`` has been called at this end."""

    @property
    def verdict(self) -> PdserveError | None:
        """What the worker is told: why it was refused, else what was wrong with its bytes."""

    def lose(self, reason: str) -> None:
        """The worker is known to be gone."""


class SessionHost:
    """Gives every session to ``on_link``.

    A session ends when ``on_link`` returns, and shortly after its link is closed or refused by
    whoever else holds it. A PdserveError out of ``on_link`` refuses the worker with it.
    """

    def __init__(self, on_link: Callable[[RouterLink], Awaitable[None]]) -> None:
        self._on_link = on_link
        self._links: set[HostedLink] = set()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def num_sessions(self) -> int:
        return len(self._links)

    async def close(self) -> None:
        """Close every session and take no other; their workers go elsewhere."""
        self._closed = True
        await asyncio.gather(*(link.close() for link in tuple(self._links)))

    async def serve(self, link: HostedLink) -> PdserveError | None:
        """One session, until nobody here holds it any more; what its worker is to be told."""
        self._links.add(link)
        owner = asyncio.ensure_future(self._on_link(link))
        try:
            await _first_of(owner, link.closed)
        except asyncio.CancelledError:
            link.lose(f"worker at {link.peer} is gone")
            raise
        finally:
            try:
                await self._wind_up(owner, link)
            finally:
                self._links.discard(link)
        return link.verdict

    async def _wind_up(self, owner: asyncio.Future[None], link: HostedLink) -> None:
        if link.closed.is_set() or not owner.done():
            await asyncio.wait({owner}, timeout=LEAVE_S)
        if not owner.done():
            _log.warning("session_owner_stuck", peer=link.peer)
            owner.cancel()
            await asyncio.wait({owner})
        error = None if owner.cancelled() else owner.exception()
        if isinstance(error, PdserveError) and not isinstance(error, WorkerLost):
            await link.refuse(error)
        await link.close()
        if error is not None and not isinstance(error, PdserveError):
            raise error


async def _first_of(owner: asyncio.Future[None], closed: asyncio.Event) -> None:
    """Returns when either has come; cancels neither the owner nor the event."""
    watch = asyncio.create_task(closed.wait())
    waits: set[asyncio.Future[Any]] = {owner, watch}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        await asyncio.wait({watch})
