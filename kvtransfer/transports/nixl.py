"""KV reads by NIXL: everything said on a gRPC stream, KV read out of the holder's pool (one-sided).

    holder                                   reader
    registers its pool with its agent        its agent knows the holder's
    names blocks in frames          ------>  has NIXL read them into its landing memory,
    keeps them until they are credited <---  copies them from there and checks the copy

A holder's agent is known by its metadata, which comes on a stream of its own that stays open as
long as the holder lives: when it breaks, the reader's agent forgets the other. The first record of
a stream is a byte: 0, a read follows; 1, show your memory (docs/protocol.md 5). Used only where
``kv_transports`` names it. Not covered: pools on a GPU, pools of several pieces, TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgpack

from kvtransfer.config import MIB
from kvtransfer.store import BlockBuffers
from kvtransfer.transports.base import Connection, Handler, Placed
from kvtransfer.transports.grpc import GrpcDialer, GrpcListener
from kvtransfer.transports.nixl_agent import DRAM, VRAM, Memory, NixlAgent, Span
from kvtransfer.transports.nixl_landing import Landing, address_of
from pdserve.errors import ConfigError, FrameCorrupt, PeerUnreachable
from pdserve.types import Endpoint

TRANSPORT = "nixl"
FIRST_RECORD_S = 10.0  # for a reader to say what its stream is for
_MAX_RECORD_BYTES = 8 * MIB  # KV itself goes another way
_READ, _SHOW = b"\0", b"\1"


def pool_memory(buffers: BlockBuffers) -> Memory:
    """The memory of a pool that lies in one piece, block after block. Raises ConfigError."""
    if buffers.copier is not None or buffers.memory_fd is None:
        raise ConfigError(f"KV transport nixl: a pool on {buffers.device} cannot be shown")
    size = buffers.num_blocks * buffers.layout.block_bytes
    return Memory(address_of(buffers.view(0)), size)


class NixlListener:
    """Shows ``pool``. ``listen`` and ``advertise``: of the gRPC stream, see GrpcListener.

    Raises ConfigError: NIXL cannot be used here.
    """

    def __init__(self, pool: Memory, listen: str = "127.0.0.1:0", advertise: str = "") -> None:
        self._agent = NixlAgent()
        self._pool = pool
        self._streams = GrpcListener(listen, advertise)
        self._shown = b""

    async def start(self, handler: Handler) -> Endpoint:
        """Raises ConfigError: the pool cannot be registered, or the address cannot be bound."""
        await self._agent.register(self._pool)
        self._shown = _written_down(self._pool, await self._agent.metadata())

        async def serve(stream: Connection) -> None:
            await self._serve(stream, handler)

        endpoint = await self._streams.start(serve)
        return Endpoint(TRANSPORT, endpoint.address)

    async def close(self) -> None:
        """Streams first: a reader must know that this agent goes before it does."""
        await self._streams.close()
        await self._agent.close()

    async def _serve(self, stream: Connection, handler: Handler) -> None:
        try:
            async with asyncio.timeout(FIRST_RECORD_S):
                wanted = await stream.receive()
        except (PeerUnreachable, TimeoutError):
            return
        if wanted == _READ:
            await handler(stream)
        elif wanted == _SHOW:
            with contextlib.suppress(PeerUnreachable):
                await stream.send(self._shown)
                await stream.receive()  # until the reader leaves


class NixlDialer:
    """Knows the agent of each holder it has dialled, until that holder is gone.

    Raises ConfigError: NIXL cannot be used here.
    """

    def __init__(self, landing: Landing | None = None) -> None:
        self._agent = NixlAgent()
        self.landing = landing or Landing()
        self._landing_is_known = False
        self._streams = GrpcDialer(_MAX_RECORD_BYTES)
        self._holders: dict[str, asyncio.Task[NixlWindow]] = {}
        self._watching: set[asyncio.Task[None]] = set()

    @property
    def num_holders(self) -> int:
        """Whose agents are known here."""
        return len(self._holders)

    async def dial(self, address: str) -> NixlConnection:
        """The first dial of a holder may take longer than its caller waits: UCX connects then.
        What it began goes on, for the next one."""
        if address not in self._holders:
            self._holders[address] = asyncio.create_task(self._known(address))
        window = await asyncio.shield(self._holders[address])
        stream = await self._streams.dial(address)
        await stream.send(_READ)
        return NixlConnection(address, stream, window)

    async def close(self) -> None:
        tasks = {*self._watching, *self._holders.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._streams.close()
        await self._agent.close()

    async def _known(self, address: str) -> NixlWindow:
        """Raises PeerUnreachable, also if what the holder shows cannot be read from here."""
        anchor: Connection | None = None
        try:
            if not self._landing_is_known:
                await self._agent.register(Memory(self.landing.address, self.landing.num_bytes))
                self._landing_is_known = True
            anchor = await self._streams.dial(address)
            await anchor.send(_SHOW)
            pool, metadata = _read_back(await anchor.receive(), address)
            name = await self._agent.add(metadata)
        except BaseException:
            self._holders.pop(address, None)  # the next dial begins anew
            if anchor is not None:
                await anchor.close()
            raise
        window = NixlWindow(f"nixl {address}", self._agent, name, pool, self.landing)
        task = asyncio.create_task(self._watch(address, anchor, window))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return window

    async def _watch(self, address: str, anchor: Connection, window: NixlWindow) -> None:
        """Until the holder is gone."""
        try:
            with contextlib.suppress(PeerUnreachable):
                await anchor.receive()
            self._holders.pop(address, None)
            await window.close()
        finally:
            await anchor.close()


class NixlConnection:
    """The reader's end: the stream's messages, and the window onto the holder's pool."""

    lane = None

    def __init__(self, address: str, stream: Connection, window: NixlWindow) -> None:
        self._stream = stream
        self._window = window
        self.peer = f"nixl {address}"

    @property
    def window(self) -> NixlWindow:
        return self._window

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def receive(self) -> bytes | memoryview:
        return await self._stream.receive()

    async def close(self) -> None:
        await self._stream.close()


class NixlWindow:
    """Satisfies ``Window`` for the pool of one holder."""

    def __init__(
        self, peer: str, agent: NixlAgent, name: str, pool: Memory, landing: Landing
    ) -> None:
        self._peer = peer
        self._agent = agent
        self._name = name
        self._pool = pool
        self._landing = landing
        self._landings: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def at_once_bytes(self) -> int:
        return self._landing.slot_bytes

    async def read(self, offsets: Sequence[int], out: Sequence[memoryview], placed: Placed) -> None:
        """See ``Window``. NIXL never writes into ``out``, so a cancelled call has ended."""
        for offset, piece in zip(offsets, out, strict=True):
            if not 0 <= offset <= offset + piece.nbytes <= self._pool.num_bytes:
                end = offset + piece.nbytes
                raise FrameCorrupt(f"bytes {offset} to {end} of a pool of {self._pool.num_bytes}")
        for part in _parts(offsets, out, self._landing.slot_bytes):
            await self._read_part(part, placed)

    async def close(self) -> None:
        """Forget the holder; reads of it fail."""
        if not self._is_closed:
            self._is_closed = True
            await self._agent.remove(self._name)

    async def _read_part(self, part: list[_Section], placed: Placed) -> None:
        slot = await self._landing.take()
        landing = asyncio.create_task(self._land(slot, part))
        self._landings.add(landing)  # the loop itself keeps no task alive
        try:
            await asyncio.shield(landing)
            landed, start = self._landing.view(slot), 0
            for section in part:
                end = start + section.into.nbytes
                section.into[:] = landed[start:end]
                start = end
                if section.last_of is not None:
                    placed(section.last_of)
        finally:
            landing.add_done_callback(lambda _: self._ended(slot, landing))

    async def _land(self, slot: int, part: list[_Section]) -> None:
        if self._is_closed:
            raise PeerUnreachable(f"{self._peer}: its memory is gone")
        spans, mine = [], self._landing.address_in(slot)
        for section in part:
            spans.append(Span(self._pool.address + section.offset, mine, section.into.nbytes))
            mine += section.into.nbytes
        await self._agent.read(self._name, self._pool.kind, self._pool.device, spans)

    def _ended(self, slot: int, landing: asyncio.Task[None]) -> None:
        self._landings.discard(landing)
        self._landing.give_back(slot)
        if not landing.cancelled():
            landing.exception()  # of a read that nobody waits for any more


@dataclass(frozen=True, slots=True)
class _Section:
    """``last_of``: the piece that is full once this is in."""

    offset: int
    into: memoryview
    last_of: memoryview | None


def _parts(
    offsets: Sequence[int], out: Sequence[memoryview], most_bytes: int
) -> Iterator[list[_Section]]:
    """Groups of ``most_bytes`` at most; a piece that is larger is cut."""
    part: list[_Section] = []
    room = most_bytes
    for offset, piece in zip(offsets, out, strict=True):
        done = 0
        while done < piece.nbytes:
            size = min(room, piece.nbytes - done)
            into, begin = piece[done : done + size], offset + done
            done += size
            part.append(_Section(begin, into, piece if done == piece.nbytes else None))
            room -= size
            if not room:
                yield part
                part, room = [], most_bytes
    if part:
        yield part


def _written_down(pool: Memory, metadata: bytes) -> bytes:
    return bytes(msgpack.packb((pool.address, pool.num_bytes, pool.kind, pool.device, metadata)))


def _read_back(record: bytes | memoryview, address: str) -> tuple[Memory, bytes]:
    """Raises PeerUnreachable: that is no description of a memory."""
    try:
        start, num_bytes, kind, device, metadata = msgpack.unpackb(record)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise PeerUnreachable(f"nixl {address}: what it shows is unknown: {error}") from error
    numbers = (start, num_bytes, device)
    known = all(isinstance(each, int) for each in numbers) and kind in (DRAM, VRAM)
    if not known or not isinstance(metadata, bytes):
        raise PeerUnreachable(f"nixl {address}: what it shows is no memory")
    return Memory(start, num_bytes, kind, device), metadata
