"""What carries a KV read: whole messages, in order, both ways.

A transport is a listener and a dialer that make ``Connection``s. After the far end closed or the
connection broke, ``receive`` still gives what had arrived and then raises PeerUnreachable; ``send``
raises it at once. A connection is used by one reading and one sending task at a time; cancelling a
pending call may break it. Transports know nothing of messages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from pdserve.types import Endpoint


class Connection(Protocol):
    @property
    def peer(self) -> str:
        """For people: address of the far end."""

    async def send(self, data: bytes) -> None:
        """Hand over one message; waits while the far end is behind. Raises PeerUnreachable."""

    async def receive(self) -> bytes:
        """The next message. Raises PeerUnreachable when there will be none."""

    async def close(self) -> None:
        """End the connection at once, both ways. May be called again."""


Handler = Callable[[Connection], Awaitable[None]]


class Listener(Protocol):
    async def start(self, handler: Handler) -> Endpoint:
        """Begin to accept; each connection lives as long as its ``handler`` runs."""

    async def close(self) -> None:
        """Stop accepting and end every connection; returns when the handlers have ended."""


class Dialer(Protocol):
    async def dial(self, address: str) -> Connection:
        """Raises PeerUnreachable. Bounded by the caller."""

    async def close(self) -> None:
        """End every connection made by this dialer."""
