"""The ``openai`` client against the HTTP face."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pdserve.errors import Overloaded, RetriesExhausted
from router.http.server import serve_http
from support.http_face import build_face_app
from support.scripted_tokens import Script, ScriptedTokens, script

openai = pytest.importorskip("openai")

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@asynccontextmanager
async def client_for(*scripts: Script) -> AsyncIterator[Any]:
    app, _ = build_face_app(ScriptedTokens(*scripts))
    server = await serve_http(app, "127.0.0.1", 0)
    client = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    )
    async with client:
        yield client
    await server.close()


async def test_models_and_whole_answers() -> None:
    async with client_for(script("sea 🌊")) as client:
        assert [model.id async for model in client.models.list()] == ["byte-model"]
        chat = await client.chat.completions.create(
            model="byte-model", messages=MESSAGES, logprobs=True, top_logprobs=2
        )
        assert chat.choices[0].message.content == "sea 🌊"
        assert chat.choices[0].finish_reason == "stop"
        assert chat.choices[0].logprobs.content[0].top_logprobs[1].logprob == -2.0
        assert chat.usage.completion_tokens == 9
        plain = await client.completions.create(model="byte-model", prompt=[65, 66], logprobs=1)
        assert plain.choices[0].text == "sea 🌊"
        assert plain.choices[0].logprobs.tokens[0] == "s"


async def test_streams() -> None:
    async with client_for(script("sea 🌊")) as client:
        stream = await client.chat.completions.create(
            model="byte-model", messages=MESSAGES, stream=True,
            stream_options={"include_usage": True}, extra_body={"pdserve_timing": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
        assert "".join(texts) == "sea 🌊"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage.total_tokens == 29
        assert chunks[-1].pdserve["ttft_s"] == 1.75
        plain = await client.completions.create(model="byte-model", prompt="Hi", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in plain]) == "sea 🌊"


async def test_errors_have_their_classes() -> None:
    async with client_for(script("x", error=Overloaded("full", 1.0)), script("x")) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.RateLimitError) as limited:
            await create(model="byte-model", messages=MESSAGES)
        assert limited.value.response.headers["retry-after"] == "1"
        with pytest.raises(openai.NotFoundError):
            await create(model="other", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as bad:
            await create(model="byte-model", messages=MESSAGES, temperature=-1)
        assert bad.value.param == "temperature"


async def test_an_error_inside_a_stream_is_raised() -> None:
    async with client_for(script("abc", fail_at=2, error=RetriesExhausted("gone"))) as client:
        stream = await client.chat.completions.create(
            model="byte-model", messages=MESSAGES, stream=True
        )
        texts = []
        with pytest.raises(openai.APIError, match="gone"):
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content)
        assert texts == ["a", "b"]
