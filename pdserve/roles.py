"""What a worker's session (pdserve/worker_session.py) asks of a room, whichever role it plays.

Protocols, no base class: PrefillWorker and DecodeWorker satisfy ``WorkerRole``, their prefix cache
``CacheFeed``; the session satisfies ``EventSink``. Everything is called on the event loop thread
and returns at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pdserve.messages import Hello, Peer, Submit, WorkerEvent
from pdserve.types import RequestId, WorkerStatus


class EventSink(Protocol):
    """Where the events of the legs of one session go. Never blocks, never raises.

    Events emitted within one turn of the event loop leave together in one StepReport; after the
    session has ended they are dropped.
    """

    def emit(self, event: WorkerEvent) -> None: ...

    def status_changed(self) -> None:
        """Report the status soon although nothing happened: a step without events has ended."""


@dataclass(frozen=True, slots=True)
class CacheDelta:
    """Hashes of blocks (``BlockKey.hash``, 8 bytes each, joined) that came and that went.

    ``is_reset``: these are the first of all there are; what was told before is void.
    """

    stored: bytes
    evicted: bytes
    is_reset: bool
    has_more: bool  # another ``take`` has the rest


class CacheFeed(Protocol):
    """What changes in a worker's prefix cache, for one session."""

    def take(self) -> CacheDelta | None:
        """What was not told yet; None: nothing. The first one is a reset."""

    def restart(self) -> None:
        """The next ``take`` is a reset."""

    def close(self) -> None:
        """Nobody will take any more."""


class WorkerRole(Protocol):
    @property
    def hello(self) -> Hello: ...

    def submit(self, submit: Submit, sink: EventSink) -> None:
        """Admit or refuse a leg; emits Admitted, Busy or AlreadyCommitted before returning."""

    def cancel(self, request_id: RequestId, epoch: int, reason: str, sink: EventSink) -> None:
        """End the legs of this request and sink up to ``epoch``; unknown ones are ignored."""

    def meet(self, peers: tuple[Peer, ...], sink: EventSink) -> None:
        """Try the KV endpoints of prefill workers; each is answered by Met. Raises ProtocolError
        in a role that reads no KV."""

    def session_ended(self, sink: EventSink) -> None:
        """Cancel every leg that was submitted with this sink."""

    def status(self) -> WorkerStatus:
        """``last_submit_seq`` is filled in by the session."""

    def watch_cache(self) -> CacheFeed | None:
        """A feed of the prefix cache; None: there is no cache."""

    def begin_drain(self) -> None:
        """Answer Busy from now on."""

    async def drained(self) -> None:
        """Returns when no leg is left."""
