"""What carries a KV read: whole messages, in order, both ways.

A transport is a listener and a dialer that make ``Connection``s. After the far end closed or the
connection broke, ``receive`` still gives what had arrived and then raises PeerUnreachable; ``send``
raises it at once, or, where a break shows late, at one of the next calls. A connection is used by
one reading and one sending task at a time; cancelling a pending call may break it. ``send`` returns
when the message will go without the sender's help, and waits while much is on its way unread.

Where one side can read the other's memory itself, the dialling end has a ``Window``: frames then
name blocks instead of carrying their bytes. Where bytes can go from memory to memory without a copy
in between, both ends have a ``PayloadLane``: payloads then follow their message. Transports know
nothing of messages. What all of them must do is tests/integration/test_kv_transports.py; a new one
is one more entry in tests/support/kv_transports.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from pdserve.types import Endpoint

Placed = Callable[[memoryview], None]
"""Told of each piece of memory right after it was filled."""


class Window(Protocol):
    """The memory of the far end's block pool, to be read from here (one-sided)."""

    @property
    def at_once_bytes(self) -> int | None:
        """What one ``read`` takes best, a block at least; None: all, since it never waits."""

    async def read(self, offsets: Sequence[int], out: Sequence[memoryview], placed: Placed) -> None:
        """Copy from each offset (bytes from the start of the pool) as much as its ``out`` takes.

        ``placed`` is called with each of ``out`` once it holds all of its bytes, in order.
        A read that has begun has ended when the call returns or raises, also when it is cancelled.

        Raises:
            FrameCorrupt: not inside the pool.
            PeerUnreachable: the far end is gone.
        """


class PayloadLane(Protocol):
    """Bytes that follow a message on its connection, out of the sender's memory into the reader's.

    Both ends know from the message how many there are; it is followed by all of them or the
    connection is broken.
    """

    async def send(self, data: bytes, payload: Sequence[memoryview]) -> None:
        """One message and its payload, which is read while this runs. Raises PeerUnreachable."""

    async def receive_into(self, out: Sequence[memoryview]) -> None:
        """The payload of the last message received, once. Raises PeerUnreachable."""


class Connection(Protocol):
    @property
    def peer(self) -> str:
        """For people: address of the far end."""

    @property
    def window(self) -> Window | None:
        """None: bytes travel in messages only. The listening end has none."""

    @property
    def lane(self) -> PayloadLane | None:
        """None: a payload is part of its message."""

    async def send(self, data: bytes) -> None:
        """Hand over one message; waits while the far end is behind. Raises PeerUnreachable."""

    async def receive(self) -> bytes | memoryview:
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
