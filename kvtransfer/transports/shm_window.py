"""Memory of other processes of this host, mapped once for each of them and read by copying.

A mapping lives as long as its owner: the socket that brought the descriptor stays open, and when it
breaks (the owner closed or died, however) the mapping goes. Only this process's event loop uses it,
and a copy never waits, so no copy is running then.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from kvtransfer.transports.base import Placed
from pdserve.errors import FrameCorrupt, PeerUnreachable
from pdserve.memory_file import map_read_only
from pdserve.unix_sockets import connected


class PeerMemory:
    """Satisfies ``Window``. ``anchor``: the socket that ends with the owner."""

    at_once_bytes = None  # copying never waits

    def __init__(self, peer: str, mapping: mmap.mmap, anchor: socket.socket) -> None:
        self._peer = peer
        self._mapping = mapping
        self._anchor = anchor
        self._view = memoryview(mapping)
        self._is_closed = False

    async def read(self, offsets: Sequence[int], out: Sequence[memoryview], placed: Placed) -> None:
        """See ``Window``."""
        if self._is_closed:
            raise PeerUnreachable(f"{self._peer}: its memory is gone")
        for offset, piece in zip(offsets, out, strict=True):
            end = offset + piece.nbytes
            if end > len(self._view):
                raise FrameCorrupt(f"bytes {offset} to {end} of a pool of {len(self._view)}")
            piece[:] = self._view[offset:end]
            placed(piece)

    def watch(self, on_end: Callable[[], None]) -> None:
        """Call ``on_end`` when the owner is gone."""
        asyncio.get_running_loop().add_reader(self._anchor.fileno(), on_end)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            asyncio.get_running_loop().remove_reader(self._anchor.fileno())
            self._anchor.close()
            self._view.release()
            self._mapping.close()


class PeerMemories:
    """By address. ``connect(address)`` gives the socket that brings the descriptor."""

    def __init__(self) -> None:
        self._memories: dict[str, PeerMemory] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def num_mapped(self) -> int:
        return len(self._memories)

    async def memory(self, address: str) -> PeerMemory:
        """Raises PeerUnreachable. A silent holder holds up only who asks for it."""
        lock = self._locks.setdefault(address, asyncio.Lock())
        async with lock:  # one mapping, however many reads begin at once
            if address not in self._memories:
                memory = await _received(address)
                self._memories[address] = memory
                memory.watch(lambda: self._drop(address))
            return self._memories[address]

    def close(self) -> None:
        for address in list(self._memories):
            self._drop(address)

    def _drop(self, address: str) -> None:
        self._memories.pop(address).close()


async def holder_socket(address: str) -> socket.socket:
    """A socket connected to an abstract address. Raises PeerUnreachable."""
    try:
        return await connected(address)
    except OSError as error:
        raise PeerUnreachable(f"shm {address}: {error}") from error


async def _received(address: str) -> PeerMemory:
    sock = await holder_socket(address)
    try:
        await _readable(sock)
        _, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        if not descriptors:
            raise PeerUnreachable(f"shm {address}: no memory was shown")
        try:
            return PeerMemory(f"shm {address}", map_read_only(descriptors[0]), sock)
        finally:
            os.close(descriptors[0])
    except OSError as error:
        sock.close()
        raise PeerUnreachable(f"shm {address}: {error}") from error
    except BaseException:
        sock.close()
        raise


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())
