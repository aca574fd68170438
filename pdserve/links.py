"""The two ends of a worker's session with a router, whatever carries it.

A link moves whole messages, in order, both ways. Carriers: ``link_pair`` here (one process) and
pdserve/rpc (gRPC, and a socket within one host). After the far end is gone or the link is closed,
both ``send`` and ``receive`` raise WorkerLost; messages that arrived before are still received. A
worker that the router refuses gets the router's error from ``receive`` instead.
"""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar

from pdserve.errors import PdserveError, WorkerLost
from pdserve.messages import FromWorker, ToWorker


class WorkerLink(Protocol):
    """The worker's end."""

    async def send(self, message: FromWorker) -> None: ...

    async def flushed(self) -> None:
        """Until what was sent is with the carrier, or the link is over."""

    async def receive(self) -> ToWorker: ...

    async def close(self) -> None: ...


class RouterLink(Protocol):
    """The router's end."""

    @property
    def peer(self) -> str:
        """For people: address of the far end."""

    async def send(self, message: ToWorker) -> None: ...

    async def receive(self) -> FromWorker: ...

    async def refuse(self, error: PdserveError) -> None:
        """Close, so that the worker's ``receive`` raises an error of this class and text."""

    async def close(self) -> None: ...


_Out = TypeVar("_Out")
_In = TypeVar("_In")


class _Wire:
    """Shared by both ends: set once either end is closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.error: PdserveError | None = None  # why the router refused the worker

    def reason(self) -> PdserveError:
        return self.error or WorkerLost("session closed")


class QueueLink(Generic[_Out, _In]):
    """One end of an in-process link."""

    def __init__(
        self, wire: _Wire, outgoing: asyncio.Queue[_Out], incoming: asyncio.Queue[_In]
    ) -> None:
        self._wire = wire
        self._outgoing = outgoing
        self._incoming = incoming

    @property
    def peer(self) -> str:
        return "inproc"

    async def send(self, message: _Out) -> None:
        if self._wire.closed.is_set():
            raise self._wire.reason()
        self._outgoing.put_nowait(message)

    async def flushed(self) -> None:
        """At once: a queue takes everything."""

    async def receive(self) -> _In:
        if not self._incoming.empty():
            return self._incoming.get_nowait()
        get = asyncio.ensure_future(self._incoming.get())
        closed = asyncio.ensure_future(self._wire.closed.wait())
        try:
            await asyncio.wait({get, closed}, return_when=asyncio.FIRST_COMPLETED)
            if get.done():
                return get.result()
            raise self._wire.reason()
        finally:
            get.cancel()
            closed.cancel()

    async def refuse(self, error: PdserveError) -> None:
        self._wire.error = self._wire.error or error
        self._wire.closed.set()

    async def close(self) -> None:
        self._wire.closed.set()


def link_pair() -> tuple[QueueLink[FromWorker, ToWorker], QueueLink[ToWorker, FromWorker]]:
    """(worker's end, router's end) within one process."""
    wire = _Wire()
    up: asyncio.Queue[FromWorker] = asyncio.Queue()
    down: asyncio.Queue[ToWorker] = asyncio.Queue()
    return QueueLink(wire, up, down), QueueLink(wire, down, up)
