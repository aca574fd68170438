"""How a benchmark asks a service: by pdserve's gRPC or by any OpenAI server's HTTP.

Both count tokens, not text: gRPC by token ids, HTTP by ``continuous_usage_stats`` (and one a chunk
where a server does not send them). Errors come as PdserveError with a ``code``. Not covered: TLS,
API keys.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import httpx

from cluster.ledger_text import timing_of
from cluster.load.arrivals import Job
from cluster.load.records import Chunk
from pdserve.errors import PdserveError
from pdserve.request_start import REQUEST_START, request_start
from router.client import AsyncClient

_SAFE_VOCAB_SIZE = 256  # for servers that do not tell theirs


class RequestFailed(PdserveError):
    """An HTTP answer that is an error; ``code`` is the server's, or made from its status."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class RequestFace(Protocol):
    """All that sending needs."""

    def stream(self, job: Job) -> AsyncGenerator[Chunk]:
        """Send one request. Raises PdserveError while iterating."""

    async def close(self) -> None: ...


class ServiceFace(RequestFace, Protocol):
    """And what is asked before, to make requests that fit."""

    async def vocab_size(self) -> int: ...

    async def max_model_len(self) -> int:
        """Tokens of prompt and answer together that the model takes."""


class GrpcFace:
    def __init__(self, target: str) -> None:
        self._client = AsyncClient(target)

    async def vocab_size(self) -> int:
        return (await self._client.list_models())[0].vocab_size

    async def max_model_len(self) -> int:
        return (await self._client.list_models())[0].max_model_len

    async def stream(self, job: Job) -> AsyncGenerator[Chunk]:
        call = self._client.generate(
            prompt_ids=job.prompt_ids, max_tokens=job.max_tokens, ignore_eos=True, temperature=0.0,
            began_unix_s=time.time(),
        )  # fmt: skip
        async with call:
            async for delta in call:
                yield Chunk(len(delta.token_ids))
            yield Chunk(0, call.timing)

    async def close(self) -> None:
        await self._client.close()


class HttpFace:
    """``url`` with or without /v1. ``model`` empty: the first the server names."""

    def __init__(
        self, url: str, model: str = "", *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        # One connection for each running request; deadlines are the caller's.
        self._client = httpx.AsyncClient(
            base_url=base, timeout=None, limits=httpx.Limits(max_connections=None),
            transport=transport,
        )  # fmt: skip
        self._model = model

    async def vocab_size(self) -> int:
        return _SAFE_VOCAB_SIZE

    async def max_model_len(self) -> int:
        return int((await self._first_model())["max_model_len"])

    async def stream(self, job: Job) -> AsyncGenerator[Chunk]:
        body = {
            "model": await self._model_name(),
            "prompt": list(job.prompt_ids),
            "max_tokens": job.max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        try:
            async with aclosing(self._events(body)) as events:
                num_tokens = 0
                async for event in events:
                    before, num_tokens = num_tokens, _tokens_after(event, num_tokens)
                    ledger = event.get("pdserve")
                    yield Chunk(num_tokens - before, timing_of(ledger) if ledger else None)
        except httpx.HTTPError as error:
            raise RequestFailed("connection", f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _model_name(self) -> str:
        if not self._model:
            self._model = str((await self._first_model())["id"])
        return self._model

    async def _first_model(self) -> dict[str, Any]:
        answer = await self._client.get("/v1/models")
        answer.raise_for_status()
        model: dict[str, Any] = answer.json()["data"][0]
        return model

    async def _events(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        # Other servers pass these over.
        headers = {"x-pdserve-timing": "1", REQUEST_START: request_start(time.time())}
        async with self._client.stream(
            "POST", "/v1/completions", json=body, headers=headers
        ) as answer:
            if answer.status_code != httpx.codes.OK:
                raise _failure(answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                event: dict[str, Any] = json.loads(data)
                if "error" in event:
                    raise _failure(200, data.encode())
                yield event
        raise RequestFailed("connection", "the stream ended before [DONE]")


def _tokens_after(event: Mapping[str, Any], num_tokens: int) -> int:
    usage = event.get("usage")
    if usage is not None:
        return int(usage["completion_tokens"])
    return num_tokens + any(choice.get("text") for choice in event["choices"])


def _failure(status: int, body: bytes) -> RequestFailed:
    try:
        error = json.loads(body)["error"]
        return RequestFailed(str(error.get("code") or f"http_{status}"), str(error["message"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return RequestFailed(f"http_{status}", body[:200].decode(errors="replace"))
