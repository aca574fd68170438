"""An HTTP service on loopback whose answers a test decides, one for each request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Answering = Callable[[str, bytes], Awaitable[bytes | None]]  # (path, body) -> bytes; None: hang up


def http_answer(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class ScriptedHttp:
    """``num_connections`` so far, ``num_open`` now."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self.port = 0
        self.num_connections = 0
        self.num_open = 0
        self.all_closed = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        self.all_closed.clear()
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *headers = head.decode().split("\r\n")
                length = next(
                    int(line.split(":")[1])
                    for line in headers
                    if line.lower().startswith("content-length")
                )
                body = await reader.readexactly(length)
                answer = await self._answering(first.split()[1], body)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            self.num_open -= 1
            if not self.num_open:
                self.all_closed.set()


@asynccontextmanager
async def scripted_http(answering: Answering) -> AsyncIterator[ScriptedHttp]:
    service = ScriptedHttp(answering)
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        await server.wait_closed()
