"""Sockets to listeners that have carried a conversation to its end, kept for the next one.

Knows neither messages nor how an address is reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kvtransfer.transports.socket_stream import MessageSocket

MOST_IDLE = 16  # of one address: reads that begin together; more than that are dialled anew


class KeptSockets:
    """``connect(address, socket)``: make ``socket`` the protocol of a new one to ``address``."""

    def __init__(
        self, max_message_bytes: int, connect: Callable[[str, MessageSocket], Awaitable[None]]
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._connect = connect
        self._idle: dict[str, list[MessageSocket]] = {}
        self._sockets: dict[MessageSocket, str] = {}

    @property
    def num_open(self) -> int:
        return len(self._sockets)

    async def socket(self, address: str) -> MessageSocket:
        """An idle one, or a new one; raises what ``connect`` does."""
        idle = self._idle.get(address)
        if idle:
            return idle.pop()
        socket = MessageSocket(self._max_message_bytes, on_idle=self._keep, on_lost=self._forget)
        await self._connect(address, socket)
        self._sockets[socket] = address
        return socket

    def close(self) -> None:
        """End all of them, in use or not."""
        for socket in list(self._sockets):
            socket.abort("closed")
        self._sockets.clear()
        self._idle.clear()

    def _keep(self, socket: MessageSocket) -> None:
        address = self._sockets.get(socket)
        if address is None:
            return
        idle = self._idle.setdefault(address, [])
        if len(idle) < MOST_IDLE:
            idle.append(socket)
        else:
            socket.abort("enough are kept")

    def _forget(self, socket: MessageSocket) -> None:
        address = self._sockets.pop(socket, None)
        idle = self._idle.get(address, []) if address is not None else []
        if socket in idle:
            idle.remove(socket)
        if address is not None and not idle:
            self._idle.pop(address, None)
