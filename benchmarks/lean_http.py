"""A client of the HTTP face that adds as little as it can to what it measures.

Kept connections, one write a request, lines read as they come; httpx takes some 2 ms of a request's
TTFT on the cores of this project, which would hide what is looked for. Only for streams of
``/v1/completions`` of this project's router: an event must lie within one line of one HTTP chunk,
whose length lines are then passed over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

from cluster.ledger_text import timing_of
from cluster.load.arrivals import Job
from cluster.load.records import Chunk
from pdserve.errors import ProtocolError
from pdserve.request_start import REQUEST_START, request_start

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class LeanHttpFace:
    """Satisfies cluster/load's ``RequestFace``."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._idle: list[_Connection] = []

    async def stream(self, job: Job) -> AsyncGenerator[Chunk]:
        """Raises ProtocolError: the answer is no stream of events."""
        began_unix_s = time.time()
        connection = self._idle.pop() if self._idle else await self._connect()
        reader, writer = connection
        writer.write(_request_bytes(self._host, job, began_unix_s))
        status = await reader.readline()
        if b" 200 " not in status:
            writer.close()
            raise ProtocolError(f"HTTP: {status!r}")
        num_tokens = 0
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise ProtocolError(f"HTTP: {event['error']}")
                before, num_tokens = num_tokens, int(event["usage"]["completion_tokens"])
                ledger = event.get("pdserve")
                yield Chunk(num_tokens - before, timing_of(ledger) if ledger else None)
            elif line == b"0\r\n":
                await reader.readline()
                self._idle.append(connection)
                return
        raise ProtocolError("HTTP: the connection ended before the answer")

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()

    async def _connect(self) -> _Connection:
        return await asyncio.open_connection(self._host, self._port)


def _request_bytes(host: str, job: Job, began_unix_s: float) -> bytes:
    body = json.dumps(
        {
            "prompt": job.prompt_ids,
            "max_tokens": job.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"x-pdserve-timing: 1\r\n{REQUEST_START}: {request_start(began_unix_s)}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
