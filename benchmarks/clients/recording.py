"""A proxy on loopback that notes what a client sends: the source of tests/data/clients.

Passes every request on as it is and every answer back as it comes, and keeps one request of each
kind (method, path and set of fields). Figures taken through it are worth nothing. Not covered:
answers, which tests make with the real HTTP face.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from router.http.server import serve_http

_LOOPBACK = "127.0.0.1"
_METHODS = ["GET", "POST", "HEAD", "OPTIONS"]
_HOP_BY_HOP = frozenset({"host", "connection", "content-length", "transfer-encoding"})
_NOT_KEPT = _HOP_BY_HOP | {"authorization", "user-agent"}
_LONGEST_TEXT = 200  # characters of a prompt that are worth keeping


class Recorder:
    """``kinds``: one request of each kind, in order of appearance."""

    def __init__(self, target: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=target, timeout=None, limits=httpx.Limits(max_connections=None)
        )
        self.kinds: dict[str, dict[str, Any]] = {}

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._pass_on, methods=_METHODS)])

    def save(self, file: Path, made_by: str) -> None:
        document = {"made_by": made_by, "requests": list(self.kinds.values())}
        text = json.dumps(document, indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")

    async def close(self) -> None:
        await self._client.aclose()

    async def _pass_on(self, request: Request) -> StreamingResponse:
        raw = await request.body()
        self._keep(request, raw)
        headers = {k: v for k, v in request.headers.items() if k not in _HOP_BY_HOP}
        outgoing = self._client.build_request(
            request.method, request.url.path, headers=headers, content=raw
        )
        answer = await self._client.send(outgoing, stream=True)
        kept = {k: v for k, v in answer.headers.items() if k not in _HOP_BY_HOP}
        return StreamingResponse(_closing(answer), answer.status_code, kept)

    def _keep(self, request: Request, raw: bytes) -> None:
        body = json.loads(raw) if raw else None
        fields = sorted(body) if isinstance(body, dict) else []
        kind = f"{request.method} {request.url.path} {fields}"
        if kind in self.kinds:
            return
        self.kinds[kind] = {
            "method": request.method,
            "path": request.url.path,
            "headers": {k: v for k, v in request.headers.items() if k not in _NOT_KEPT},
            "body": _shortened(body),
        }


@contextlib.asynccontextmanager
async def recording(target: str) -> AsyncIterator[tuple[str, Recorder]]:
    """(URL to give the client, what it sends) for a service at ``target``."""
    recorder = Recorder(target)
    server = await serve_http(recorder.app(), _LOOPBACK, 0)
    try:
        yield f"http://{_LOOPBACK}:{server.port}", recorder
    finally:
        await server.close()
        await recorder.close()


async def _closing(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for data in answer.aiter_raw():
            yield data
    finally:
        await answer.aclose()


def _shortened(value: Any) -> Any:
    """Prompts of a benchmark are long and random; their beginning is as good a prompt."""
    if isinstance(value, str):
        return value[:_LONGEST_TEXT]
    if isinstance(value, list):
        return [_shortened(item) for item in value[:_LONGEST_TEXT]]
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    return value
