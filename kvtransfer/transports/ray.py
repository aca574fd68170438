"""KV reads between two processes of one Ray cluster: frames through Ray's object store.

    holder                                       reader
    puts a frame into its node's store  ------>  reads it in place (pulled to its own node first,
    keeps it until the reader has read  <------  if that is another one)

Everything is said on a gRPC stream as on transport ``grpc``; only a large message of the holder is
an object, and its reference is said instead (docs/protocol.md 5). Each record on the stream is a
byte for its kind and then: a message; a reference; or how many objects the reader has done with.

What a holder keeps in the store is bounded over all readers, so the store never fills and nothing
is spilled because of KV; if an end dies, the stream breaks and the objects go. Not covered: memory
of devices (Ray's direct transport: docs/decisions/0014).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from kvtransfer.config import MIB
from kvtransfer.transports.base import Connection, Handler
from kvtransfer.transports.grpc import GrpcDialer, GrpcListener
from kvtransfer.transports.ray_objects import (
    STORE_SHARE,
    StoreBudget,
    StoreShare,
    nodes,
    own_node,
    read,
    written_down,
)
from pdserve.errors import ConfigError, PeerUnreachable
from pdserve.types import Endpoint

TRANSPORT = "ray"
LEAST_OBJECT_BYTES = 64 * 1024  # less is said on the stream
MOST_AHEAD_BYTES = 16 * MIB  # of one connection, not read yet
MAX_UNREAD_MESSAGES = 64  # of a reader, before its stream is read no further
_MAX_RECORD_BYTES = MIB

_MESSAGE, _OBJECT, _DONE = 0, 1, 2


class RayListener:
    """``listen`` and ``advertise``: of the gRPC stream, see GrpcListener."""

    def __init__(
        self,
        listen: str = "127.0.0.1:0",
        advertise: str = "",
        *,
        store_bytes: int = 0,
        least_object_bytes: int = LEAST_OBJECT_BYTES,
    ) -> None:
        """``store_bytes``: most in the store at a time; 0: a sixteenth of what the node's has."""
        self._streams = GrpcListener(listen, advertise)
        self._store_bytes = store_bytes
        self._least_object_bytes = least_object_bytes
        self.budget = StoreBudget(store_bytes)

    async def start(self, handler: Handler) -> Endpoint:
        """Raises ConfigError: not part of a Ray cluster, or the address cannot be bound."""
        node = own_node()
        if not self._store_bytes:
            self.budget.limit_bytes = await asyncio.to_thread(_share_of_store, node)

        async def serve(stream: Connection) -> None:
            await self._serve(stream, handler)

        endpoint = await self._streams.start(serve)
        return Endpoint(TRANSPORT, f"{node}@{endpoint.address}")

    async def close(self) -> None:
        await self._streams.close()

    async def _serve(self, stream: Connection, handler: Handler) -> None:
        share = self.budget.share(MOST_AHEAD_BYTES)
        connection = RayHolderConnection(stream, share, self._least_object_bytes)
        receiving = asyncio.create_task(connection.receive_all())
        try:
            await handler(connection)
            await share.emptied()  # what was sent before the end still arrives
        finally:
            share.close()
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)


class RayHolderConnection:
    """The holder's end. ``receive_all`` runs beside its use, for the reader's word on objects."""

    window = None
    lane = None

    def __init__(self, stream: Connection, share: StoreShare, least_object_bytes: int) -> None:
        self._stream = stream
        self._share = share
        self._least_object_bytes = least_object_bytes
        self._unread: deque[bytes | memoryview] = deque()
        self._changed = asyncio.Event()
        self._over = ""  # why nothing more will come
        self._closed = False

    @property
    def peer(self) -> str:
        return f"ray {self._stream.peer}"

    async def send(self, data: bytes) -> None:
        self._refuse_if_closed()
        if len(data) < self._least_object_bytes:
            await self._stream.send(bytes((_MESSAGE,)) + data)
            return
        ref = await self._share.keep(data)
        await self._stream.send(bytes((_OBJECT,)) + written_down(ref))

    async def receive(self) -> bytes | memoryview:
        self._refuse_if_closed()
        await self._until(lambda: bool(self._unread or self._over or self._closed))
        if not self._unread or self._closed:
            raise PeerUnreachable(f"{self.peer}: {self._over or 'closed'}")
        self._changed.set()
        return self._unread.popleft()

    async def close(self) -> None:
        """The stream ends when the handler has returned and the reader has read the objects."""
        self._closed = True
        self._changed.set()

    async def receive_all(self) -> None:
        try:
            while True:
                await self._until(lambda: len(self._unread) < MAX_UNREAD_MESSAGES)
                record = await self._stream.receive()
                if record[:1] == bytes((_DONE,)):
                    self._share.let_go(int.from_bytes(record[1:], "little"))
                else:
                    self._unread.append(record[1:])
                    self._changed.set()
        except PeerUnreachable as error:
            self._over = str(error)
        finally:
            self._over = self._over or "ended"
            self._share.close()
            self._changed.set()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise PeerUnreachable(f"{self.peer}: closed")

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class RayDialer:
    """Reaches holders of the own cluster alone: others are refused without a connection."""

    def __init__(self) -> None:
        self._streams = GrpcDialer(_MAX_RECORD_BYTES)
        self._nodes: set[str] = set()  # that were found in the cluster

    async def dial(self, address: str) -> RayReaderConnection:
        node, _, target = address.partition("@")
        try:
            own_node()
        except ConfigError as error:
            raise PeerUnreachable(str(error)) from error
        if node not in self._nodes:
            self._nodes = set(await asyncio.to_thread(nodes))
        if node not in self._nodes:
            raise PeerUnreachable(f"ray {target}: node {node[:8]} is not in this cluster")
        return RayReaderConnection(target, await self._streams.dial(target))

    async def close(self) -> None:
        await self._streams.close()


class RayReaderConnection:
    """The reader's end. A message that was an object is done with when the next one is asked for;
    its memory stays valid as long as it is looked at."""

    window = None
    lane = None

    def __init__(self, target: str, stream: Connection) -> None:
        self._target = target
        self._stream = stream
        self._saying = asyncio.Lock()  # of ``send`` and of what ``receive`` says itself
        self._num_read = 0  # objects that the holder does not know to be done with

    @property
    def peer(self) -> str:
        return f"ray {self._target}"

    async def send(self, data: bytes) -> None:
        await self._say(bytes((_MESSAGE,)) + data)

    async def receive(self) -> bytes | memoryview:
        await self._tell_done()
        record = await self._stream.receive()
        if record[:1] == bytes((_MESSAGE,)):
            return record[1:]
        try:
            data = await read(memoryview(record)[1:])
        except BaseException:
            await self._stream.close()  # a message is lost: nothing after it makes sense
            raise
        self._num_read += 1
        return data

    async def close(self) -> None:
        await self._stream.close()

    async def _tell_done(self) -> None:
        num_read, self._num_read = self._num_read, 0
        if not num_read:
            return
        # A holder that is gone has let go of everything; what it has said can still be received.
        with contextlib.suppress(PeerUnreachable):
            await self._say(bytes((_DONE,)) + num_read.to_bytes(4, "little"))

    async def _say(self, record: bytes) -> None:
        async with self._saying:
            await self._stream.send(record)


def _share_of_store(node: str) -> int:
    """Raises ConfigError if this node is not known to its cluster."""
    store_bytes = nodes().get(node)
    if store_bytes is None:
        raise ConfigError(f"KV transport ray: node {node} is not in the cluster")
    return store_bytes // STORE_SHARE
