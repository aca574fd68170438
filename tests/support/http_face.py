"""The HTTP face over scripted tokens, reached without a socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.types import ASGIApp

from pdserve.clock import ManualClock
from pdserve.metrics import ServiceMetrics
from router.http.app import build_http_app
from router.http.config import HttpConfig
from router.http.status import ServiceStatus
from router.text_generation import TextService
from support.scripted_tokens import Script, ScriptedTokens, byte_text_model

HELLO = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass
class Face:
    """One application with what a test looks at."""

    app: ASGIApp
    tokens: ScriptedTokens
    metrics: ServiceMetrics
    client: httpx.AsyncClient

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.client.post(CHAT, json={"messages": HELLO, **fields})

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.client.post(COMPLETIONS, json={"prompt": "Hi", **fields})

    def count(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"pdserve_{name}", labels)


def build_face_app(
    tokens: ScriptedTokens, config: HttpConfig | None = None, status: ServiceStatus | None = None
) -> tuple[ASGIApp, ServiceMetrics]:
    metrics, clock = ServiceMetrics(), ManualClock(100.0)
    service = TextService(tokens, byte_text_model(), metrics=metrics, clock=clock)
    current = status or ServiceStatus(ready=True)
    return build_http_app(service, lambda: current, metrics, config, clock=clock), metrics


@asynccontextmanager
async def http_face(
    *scripts: Script, config: HttpConfig | None = None, status: ServiceStatus | None = None
) -> AsyncIterator[Face]:
    """Ends by asserting that no generation is left running."""
    tokens = ScriptedTokens(*scripts)
    app, metrics = build_face_app(tokens, config, status)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Face(app, tokens, metrics, client)
    assert tokens.num_running == 0


def events_of(response: httpx.Response) -> list[str]:
    """The data of every server-sent event; fails on anything else in the body."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a whole stream, which must end with [DONE]."""
    events = events_of(response)
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]
