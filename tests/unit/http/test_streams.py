"""Server-sent events: what real clients need of them, and how a stream can end."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from starlette.types import Message, Scope

from pdserve.errors import EngineFailure, NoWorkers
from router.http.config import HttpConfig
from router.http.server import TRANSPORT_KEY
from support.http_face import CHAT, HELLO, Face, chunks_of, events_of, http_face
from support.scripted_tokens import script


async def test_a_chat_stream() -> None:
    async with http_face(script("aé")) as face:
        response = await face.chat(stream=True)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-request-id"]
        chunks = chunks_of(response)
        assert [chunk["choices"] for chunk in chunks] == [
            [choice({"role": "assistant", "content": "a"})],
            [choice({"content": "é"})],
            [choice({}, "stop")],
        ]
        for chunk in chunks:
            assert chunk["object"] == "chat.completion.chunk"
            assert chunk["id"] == chunks[0]["id"]
            assert chunk["model"] == "byte-model"
            assert isinstance(chunk["created"], int)
            assert "usage" not in chunk


def choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


async def test_the_role_waits_for_the_first_text() -> None:
    async with http_face(script("🌊")) as face:
        first = chunks_of(await face.chat(stream=True))[0]
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": "🌊"}


async def test_an_answer_without_text_still_has_its_role() -> None:
    async with http_face(script("")) as face:
        chunks = chunks_of(await face.chat(stream=True))
        assert [chunk["choices"] for chunk in chunks] == [
            [choice({"role": "assistant", "content": ""}, "stop")]
        ]


async def test_a_completion_stream_with_text_in_the_last_chunk() -> None:
    async with http_face(script("abc")) as face:
        chunks = chunks_of(await face.complete(stream=True, max_tokens=2))
        assert [chunk["choices"] for chunk in chunks] == [
            [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
            [{"index": 0, "text": "b", "logprobs": None, "finish_reason": "length"}],
        ]
        assert {chunk["object"] for chunk in chunks} == {"text_completion"}


async def test_the_usage_chunk_has_no_choices() -> None:
    async with http_face(script("abc")) as face:
        chunks = chunks_of(await face.complete(stream=True, stream_options={"include_usage": True}))
        assert ["usage" in chunk for chunk in chunks] == [False] * 4 + [True]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 4
        assert chunks[-1]["object"] == "text_completion"


async def test_continuous_usage_counts_up() -> None:
    async with http_face(script("ab")) as face:
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks = chunks_of(await face.chat(stream=True, stream_options=options))
        assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]


@pytest.mark.parametrize("include_usage", [True, False])
async def test_the_ledger_is_on_the_last_chunk(include_usage: bool) -> None:
    async with http_face(script("ab")) as face:
        chunks = chunks_of(
            await face.chat(
                stream=True, pdserve_timing=True, stream_options={"include_usage": include_usage}
            )
        )
        assert ["pdserve" in chunk for chunk in chunks[:-1]] == [False] * (len(chunks) - 1)
        assert chunks[-1]["pdserve"]["total_s"] == 9.0


async def test_streamed_logprobs_come_with_their_tokens() -> None:
    async with http_face(script("é")) as face:
        chunks = chunks_of(await face.complete(stream=True, logprobs=0))
        logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        assert [entry["tokens"] for entry in logprobs] == [["\ufffd"], ["\ufffd"], ["<end>"]]
        assert [entry["text_offset"] for entry in logprobs] == [[0], [1], [2]]


async def test_stop_strings_in_a_stream() -> None:
    async with http_face(script("one. two")) as face:
        chunks = chunks_of(await face.complete(stream=True, stop=". t"))
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "one"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert [reason for _, reason in face.tokens.cancels] == ["stop string"]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_token_is_a_status(stream: bool) -> None:
    async with http_face(script("abc", fail_at=0, error=NoWorkers("no decode worker"))) as face:
        response = await face.chat(stream=stream)
        assert response.status_code == 503
        assert response.json()["error"] == {
            "message": "no decode worker", "type": "server_error", "param": None,
            "code": "no_workers",
        }  # fmt: skip


async def test_an_error_after_the_first_token_is_an_event_without_done() -> None:
    async with http_face(script("abc", fail_at=2, error=EngineFailure("step failed"))) as face:
        response = await face.chat(stream=True)
        assert response.status_code == 200
        *texts, last = [json.loads(event) for event in events_of(response)]
        assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in texts) == "ab"
        assert last["error"]["code"] == "engine_failure"
        assert face.count("requests_total", outcome="failed") == 1


# --- clients that leave or do not read, at the level of ASGI ----------------------------------


class Client:
    """One side of an ASGI call: its request, then silence until it leaves."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.left = asyncio.Event()
        self.sent: list[Message] = []
        self.num_sent = asyncio.Semaphore(0)
        self.reads = asyncio.Event()
        self.reads.set()
        self.aborted = False
        self.socket_options: list[tuple[int, int]] = []
        self._body: bytes | None = json.dumps(body).encode()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.sent.append(message)
        self.num_sent.release()

    # what the server's transport offers

    def is_closing(self) -> bool:
        return self.aborted

    def get_extra_info(self, name: str) -> Client:
        assert name == "socket"
        return self

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        self.socket_options.append((level, option))

    def abort(self) -> None:
        self.aborted = True

    async def wait_for_sent(self, num_messages: int) -> None:
        for _ in range(num_messages):
            await self.num_sent.acquire()


async def call(face: Face, client: Client) -> None:
    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
        "scheme": "http", "headers": [], "client": None, "server": None,
        "state": {TRANSPORT_KEY: client},
    }  # fmt: skip
    await face.app(scope, client.receive, client.send)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("pause_at", [0, 1])
async def test_a_client_that_leaves_cancels_at_once(stream: bool, pause_at: int) -> None:
    async with http_face(script("abc", pause_at=pause_at)) as face:
        client = Client({"messages": HELLO, "stream": stream})
        calling = asyncio.create_task(call(face, client))
        if stream and pause_at:
            await client.wait_for_sent(2)
        client.left.set()
        await calling
        assert [reason for _, reason in face.tokens.cancels] == ["the client disconnected"]
        assert face.count("requests_total", outcome="cancelled") == 1


async def test_a_cancelled_call_cancels_the_generation() -> None:
    async with http_face(script("abc", pause_at=1)) as face:
        client = Client({"messages": HELLO, "stream": True})
        calling = asyncio.create_task(call(face, client))
        await client.wait_for_sent(2)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert [reason for _, reason in face.tokens.cancels] == ["the connection ended"]


async def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    async with http_face(script("abcdef"), config=HttpConfig(stalled_write_s=0.01)) as face:
        client = Client({"messages": HELLO, "stream": True})
        calling = asyncio.create_task(call(face, client))
        await client.wait_for_sent(2)
        client.reads.clear()
        await calling
        assert client.aborted
        assert client.socket_options == [(socket.SOL_SOCKET, socket.SO_LINGER)]
        assert len(face.tokens.cancels) == 1
        assert "stalled reader" in face.tokens.cancels[0][1]
