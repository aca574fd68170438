"""One HTTP/1.1 connection that is kept for many requests, one at a time.

For a batch: hundreds of these on one event loop, each waiting minutes for a whole answer. Programs
use an OpenAI client or router/client.py. Not covered: TLS, redirects, proxies, compressed answers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

from pdserve.errors import ConfigError, PeerUnreachable

_READ_BYTES = 256 * 1024


class ServiceUrl(NamedTuple):
    host: str
    port: int
    path: str  # before the endpoint's, without a slash at its end

    @classmethod
    def parse(cls, url: str) -> ServiceUrl:
        """``http://host:port[/path]``, with or without ``/v1``. Raises ConfigError."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError as error:
            raise ConfigError(f"service_url: {error}, not {url!r}") from error
        if parts.scheme != "http" or not host or parts.query:
            raise ConfigError(f"service_url must look like http://host:port, not {url!r}")
        return cls(host, port, parts.path.rstrip("/").removesuffix("/v1"))


@dataclass(slots=True)
class HttpReply:
    """``headers``: names in lower case, of a repeated one the last."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class HttpConnection:
    """Connects on first use, and again after a failure or when the far end has closed."""

    def __init__(self, url: ServiceUrl) -> None:
        self._url = url
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> HttpReply:
        """Send JSON, get the whole answer. Cancelling it ends the connection.

        Raises:
            PeerUnreachable: nobody listens, or the connection broke before the answer was whole.
        """
        try:
            reader, writer = await self._connected()
            writer.write(self._head(path, len(body), headers) + body)
            await writer.drain()
            answer = _Answer()
            while not answer.is_complete:
                data = await reader.read(_READ_BYTES)
                if not data:
                    raise PeerUnreachable(f"{self._peer}: closed before its answer was complete")
                answer.feed(data)
        except (OSError, httptools.HttpParserError) as error:
            self.close()
            raise PeerUnreachable(f"{self._peer}: {error}") from error
        except BaseException:
            self.close()
            raise
        if not answer.keeps_connection:
            self.close()
        return answer.reply

    def close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()

    @property
    def _peer(self) -> str:
        return f"http {self._url.host}:{self._url.port}"

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._url.host, self._url.port)
        return self._streams

    def _head(self, path: str, length: int, headers: dict[str, str]) -> bytes:
        host = f"[{self._url.host}]" if ":" in self._url.host else self._url.host
        lines = [
            f"POST {self._url.path}{path} HTTP/1.1",
            f"Host: {host}:{self._url.port}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("ascii")


class _Answer:
    """httptools' callbacks, putting an answer together."""

    def __init__(self) -> None:
        self.reply = HttpReply()
        self.is_complete = False
        self.keeps_connection = False
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        self.reply.status = self._parser.get_status_code()
        self.reply.body = b"".join(self._parts)
        self.keeps_connection = self._parser.should_keep_alive()
        self.is_complete = True
