"""Stream sockets by an abstract name: of one host and network namespace, no file, nothing left.

Who can connect to such a name shares both with who listens, whatever their host names, addresses or
containers are: that is how processes of one host find out that they are. Linux only. Knows neither
what is said over them nor event-loop protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_CREDENTIALS = struct.Struct("3i")


class PeerCredentials(NamedTuple):
    """Of the process at the far end when it connected."""

    pid: int
    uid: int
    gid: int


@contextlib.contextmanager
def bound(name: str) -> Iterator[socket.socket]:
    """A socket to listen with; closed if what is done with it fails. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind("\0" + name)
        yield sock
    except BaseException:
        sock.close()
        raise


async def connected(name: str) -> socket.socket:
    """A socket to who listens by that name, not blocking. Raises OSError: nobody here does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, "\0" + name)
    except BaseException:
        sock.close()
        raise
    return sock


def peer_of(sock: socket.socket) -> PeerCredentials:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return PeerCredentials(*_CREDENTIALS.unpack(raw))
