"""The HTTP server: uvicorn with httptools in the running event loop.

It installs no signal handlers and no logging; whoever starts it closes it. Connections that never
send a request are closed, TCP_NODELAY is on for all. This module does not know the application. Not
covered: TLS, HTTP/2, websockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pdserve.errors import ConfigError
from pdserve.log import event_log
from router.http.config import HttpConfig

logger = event_log(__name__)

# In an ASGI scope's state: the connection it came on, and whether that takes no more just now.
TRANSPORT_KEY = "pdserve.transport"
_FLOW_KEY = "pdserve.flow"


async def serve_http(
    app: ASGIApp, host: str, port: int, config: HttpConfig | None = None
) -> HttpServer:
    """Listen and serve until the handle is closed. Port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    config = config or HttpConfig()
    listener = await _listen(host, port)
    protocol: Any = partial(ConnectionProtocol, header_timeout_s=config.header_timeout_s)
    server = _EmbeddedServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=config.keep_alive_s,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await _first_of(serving, server.listening)
    return HttpServer(server, serving, listener.getsockname()[1])


class HttpServer:
    """Handle of a running server."""

    def __init__(self, server: _EmbeddedServer, serving: asyncio.Task[None], port: int) -> None:
        self._server = server
        self._serving = serving
        self.port = port

    async def close(self, drain_s: float = 0.0) -> None:
        """Accept nothing more, let running requests go on for ``drain_s``, then cut them off."""
        for listener in self._server.servers:
            listener.close()
        self._server.should_exit = True
        done, _ = await asyncio.wait({self._serving}, timeout=drain_s)
        if not done:
            connections = list(self._server.server_state.connections)
            logger.info("http_cut_off", connections=len(connections))
            for connection in connections:
                connection.transport.abort()
        await self._serving


def may_wait_in_send(scope: Scope) -> Callable[[], bool]:
    """For a request: whether its next ``send`` may wait for the client to make room.

    Always, if the application is not run by this server.
    """
    flow: FlowControl | None = scope.get("state", {}).get(_FLOW_KEY)
    return (lambda: True) if flow is None else (lambda: flow.write_paused)


def abort_connection(scope: Scope) -> None:
    """Reset the connection of a request at once, dropping what is unsent.

    An ordinary close would wait for the client to take what is buffered, here and in the kernel.
    Does nothing if the application is not run by this server.
    """
    transport = scope.get("state", {}).get(TRANSPORT_KEY)
    if transport is not None and not transport.is_closing():
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class ConnectionProtocol(HttpToolsProtocol):
    """uvicorn's connection; its transport is in the scope, its first request has a deadline."""

    def __init__(self, *args: Any, header_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timeout_s = header_timeout_s
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, TRANSPORT_KEY: transport, _FLOW_KEY: self.flow}
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._header_timer = self.loop.call_later(self._header_timeout_s, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            logger.info("http_silent_peer", peer=self.client)
            self.transport.abort()


class _EmbeddedServer(uvicorn.Server):
    """Leaves the process's signals alone and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


async def _listen(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"http: cannot listen on {host}:{port}: {error}").advise(
            "another process has this port, or the address is not this host's; `pdserve doctor`"
            " tells which. Choose another with --http-port or --listen"
        ) from error


async def _first_of(serving: asyncio.Task[None], listening: asyncio.Event) -> None:
    """Wait until the server listens, or raise what kept it from that."""
    waiting = asyncio.create_task(listening.wait())
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
    finally:
        waiting.cancel()
