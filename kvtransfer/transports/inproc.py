"""KV reads within one process: bytes are handed over, not copied.

``InprocNetwork`` is the registry of addresses, passed to whoever listens or dials: two networks do
not see each other. Not covered: processes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque

from kvtransfer.transports.base import Handler
from pdserve.errors import PeerUnreachable
from pdserve.types import Endpoint

TRANSPORT = "inproc"
MAX_QUEUED_MESSAGES = 8


class InprocNetwork:
    """Addresses of one process's listeners."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._listeners: dict[str, InprocListener] = {}

    def listener(self) -> InprocListener:
        return InprocListener(self)

    def dialer(self) -> InprocDialer:
        return InprocDialer(self)

    def register(self, listener: InprocListener) -> str:
        address = f"inproc-{next(self._numbers)}"
        self._listeners[address] = listener
        return address

    def unregister(self, address: str) -> None:
        self._listeners.pop(address, None)

    def find(self, address: str) -> InprocListener:
        if address not in self._listeners:
            raise PeerUnreachable(f"nobody listens at {address}")
        return self._listeners[address]


class InprocListener:
    """Made by ``InprocNetwork.listener``."""

    def __init__(self, network: InprocNetwork) -> None:
        self._network = network
        self._address = ""
        self._handler: Handler | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, handler: Handler) -> Endpoint:
        self._handler = handler
        self._address = self._network.register(self)
        return Endpoint(TRANSPORT, self._address)

    async def close(self) -> None:
        self._network.unregister(self._address)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def accept(self) -> InprocConnection:
        """The dialling end of a new connection."""
        upward, downward = _Pipe(), _Pipe()
        task = asyncio.create_task(
            self._handle(InprocConnection(self._address, outgoing=downward, incoming=upward))
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return InprocConnection(self._address, outgoing=upward, incoming=downward)

    async def _handle(self, connection: InprocConnection) -> None:
        assert self._handler is not None
        try:
            await self._handler(connection)
        finally:
            await connection.close()


class InprocDialer:
    """Made by ``InprocNetwork.dialer``."""

    def __init__(self, network: InprocNetwork) -> None:
        self._network = network
        self._open: set[InprocConnection] = set()

    async def dial(self, address: str) -> InprocConnection:
        self._open = {connection for connection in self._open if not connection.is_closed}
        connection = self._network.find(address).accept()
        self._open.add(connection)
        return connection

    async def close(self) -> None:
        for connection in self._open:
            await connection.close()
        self._open.clear()


class InprocConnection:
    """One end."""

    window = None
    lane = None

    def __init__(self, peer: str, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._peer = peer
        self._outgoing = outgoing
        self._incoming = incoming

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def is_closed(self) -> bool:
        return self._outgoing.is_closed

    async def send(self, data: bytes) -> None:
        await self._outgoing.put(data)

    async def receive(self) -> bytes:
        return await self._incoming.get()

    async def close(self) -> None:
        self._outgoing.close()
        self._incoming.close()


class _Pipe:
    """Messages one way, a few at a time; what was put before ``close`` is still got."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self.is_closed = False

    async def put(self, data: bytes) -> None:
        await asyncio.sleep(0)  # a frame a turn: who else is on this loop gets its turn between
        while len(self._messages) >= MAX_QUEUED_MESSAGES and not self.is_closed:
            await self._change()
        if self.is_closed:
            raise PeerUnreachable("connection closed")
        self._messages.append(data)
        self._changed.set()

    async def get(self) -> bytes:
        while not self._messages:
            if self.is_closed:
                raise PeerUnreachable("connection closed")
            await self._change()
        self._changed.set()
        return self._messages.popleft()

    def close(self) -> None:
        self.is_closed = True
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
