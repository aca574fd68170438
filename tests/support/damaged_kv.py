"""A KV transport that harms what it carries: a message is changed, or the line is cut."""

from __future__ import annotations

from collections.abc import Callable

from kvtransfer.transports.base import Connection, Dialer
from pdserve.errors import PeerUnreachable
from support.whole_messages import WholeMessages

Harm = Callable[[int, bytes], bytes | None]  # (n-th message from the holder, bytes) -> bytes or cut


class HarmfulDialer:
    """Dials as ``inner`` does; what is received goes through ``harm`` (None cuts the line)."""

    def __init__(self, inner: Dialer, harm: Harm) -> None:
        self._inner = inner
        self._harm = harm
        self.num_dials = 0

    async def dial(self, address: str) -> Connection:
        self.num_dials += 1
        return _HarmfulConnection(await self._inner.dial(address), self._harm)

    async def close(self) -> None:
        await self._inner.close()


class _HarmfulConnection:
    lane = None

    def __init__(self, inner: Connection, harm: Harm) -> None:
        self._inner = WholeMessages(inner)
        self._harm = harm
        self._num_received = 0
        self.window = inner.window

    @property
    def peer(self) -> str:
        return self._inner.peer

    async def send(self, data: bytes) -> None:
        await self._inner.send(data)

    async def receive(self) -> bytes:
        data = await self._inner.receive()
        harmed = self._harm(self._num_received, data)
        self._num_received += 1
        if harmed is None:
            await self._inner.close()
            raise PeerUnreachable("the line was cut")
        return harmed

    async def close(self) -> None:
        await self._inner.close()
