"""The HTTP server on real sockets: streaming, clients that leave or stall, limits, shutdown."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from pdserve.errors import ConfigError
from router.http.config import HttpConfig
from router.http.server import TRANSPORT_KEY, HttpServer, serve_http
from support.http_face import CHAT, HELLO, build_face_app
from support.scripted_tokens import Script, ScriptedTokens, script

HOST = "127.0.0.1"


@asynccontextmanager
async def serving(
    *scripts: Script, config: HttpConfig | None = None, max_model_len: int = 512
) -> AsyncIterator[tuple[HttpServer, ScriptedTokens]]:
    tokens = ScriptedTokens(*scripts, max_model_len=max_model_len)
    app, _ = build_face_app(tokens, config)
    server = await serve_http(app, HOST, 0, config)
    try:
        async with asyncio.timeout(30):
            yield server, tokens
    finally:
        await server.close()
    assert tokens.num_running == 0


def client_of(server: HttpServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{HOST}:{server.port}")


def request_bytes(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (
        CHAT.encode(), len(data), data,
    )  # fmt: skip


async def test_the_first_token_does_not_wait_for_the_second() -> None:
    paused = script("ab", pause_at=1)
    async with serving(paused) as (server, _), client_of(server) as client:
        body = {"messages": HELLO, "stream": True}
        async with client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            first = json.loads((await anext(lines)).removeprefix("data: "))
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": "a"}
            paused.resume.set()
            rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_its_generation(stream: bool) -> None:
    async with serving(script("ab", pause_at=1)) as (server, tokens):
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(request_bytes({"messages": HELLO, "stream": stream}))
        await writer.drain()
        if stream:
            await reader.readuntil(b'"content":"a"')
        else:
            async with client_of(server) as client:  # served after the first request has arrived
                await client.get("/health")
        writer.close()
        await tokens.cancelled.wait()
        assert [reason for _, reason in tokens.cancels] == ["the client disconnected"]
        await writer.wait_closed()


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    endless = script(b"x" * 100_000)
    config = HttpConfig(stalled_write_s=0.2)
    async with serving(endless, config=config, max_model_len=200_000) as (server, tokens):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((HOST, server.port))
            client.sendall(
                request_bytes(
                    {"messages": HELLO, "stream": True, "logprobs": True, "top_logprobs": 20}
                )
            )
            await tokens.cancelled.wait()
            assert "stalled reader" in tokens.cancels[0][1]
            with pytest.raises(ConnectionResetError):  # not left open with what is unsent
                while await asyncio.to_thread(client.recv, 1 << 20):
                    pass
        assert tokens.num_events_made < 100_000


async def test_a_peer_that_says_nothing_is_closed() -> None:
    async with serving(script("x"), config=HttpConfig(header_timeout_s=0.05)) as (server, _):
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(b"POST ")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_body_that_does_not_come_is_refused() -> None:
    async with serving(script("x"), config=HttpConfig(body_timeout_s=0.05)) as (server, _):
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(request_bytes({"messages": HELLO})[:-5])
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"was not complete after 0.05 s" in answer
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_over_the_limit_gets_413(chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * (1 << 20)

    headers = {} if chunked else {"content-length": str(50 << 20)}
    async with serving(script("x")) as (server, tokens), client_of(server) as client:
        response = await client.post(CHAT, content=pieces(), headers=headers)
        assert response.status_code == 413
        assert "8388608" in response.json()["error"]["message"]
        assert tokens.requests == []
        assert (await client.post(CHAT, json={"messages": HELLO})).status_code == 200


async def test_closing_lets_running_streams_end() -> None:
    paused = script("ab", pause_at=1)
    async with serving(paused) as (server, tokens), client_of(server) as client:
        body = {"messages": HELLO, "stream": True}
        async with client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            closing = asyncio.create_task(server.close(drain_s=20.0))
            await asyncio.sleep(0)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, server.port)
            paused.resume.set()
            assert [line async for line in lines if line][-1] == "data: [DONE]"
            await closing
        assert tokens.cancels == []


async def test_closing_cuts_off_what_does_not_end_in_time() -> None:
    async with serving(script("ab", pause_at=1)) as (server, tokens), client_of(server) as client:
        body = {"messages": HELLO, "stream": True}
        async with client.stream("POST", CHAT, json=body) as response:
            await anext(response.aiter_lines())
            await server.close(drain_s=0.01)
            assert [reason for _, reason in tokens.cancels] == ["the client disconnected"]


async def test_a_port_that_is_taken_is_named() -> None:
    async with serving(script("x")) as (server, _):
        with pytest.raises(ConfigError, match=f"cannot listen on {HOST}:{server.port}"):
            await serve_http(build_face_app(ScriptedTokens(script("x")))[0], HOST, server.port)


async def _tell_nodelay(scope: Scope, receive: Receive, send: Send) -> None:
    accepted = scope["state"][TRANSPORT_KEY].get_extra_info("socket")
    nodelay = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await send({"type": "http.response.start", "status": 204 if nodelay else 500, "headers": []})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_nagle_is_off_on_accepted_connections(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def ask() -> int:
        server = await serve_http(_tell_nodelay, HOST, 0)
        async with client_of(server) as client:
            status = (await client.get("/")).status_code
        await server.close()
        return status

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(ask()) == 204
