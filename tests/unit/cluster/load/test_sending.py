"""Closed and open loop against a face that is played, HTTP's counting of tokens included."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest

from cluster.load.arrivals import Job
from cluster.load.faces import HttpFace, RequestFailed
from cluster.load.records import Chunk
from cluster.load.sending import Sender, closed_loop, open_loop
from pdserve.errors import Overloaded, PdserveError
from pdserve.request_timing import RequestTiming


class PlayedFace:
    """Each token takes one turn of the loop; remembers how many requests ran at once."""

    def __init__(self, error: PdserveError | None = None, missing: int = 0) -> None:
        self._error = error
        self._missing = missing
        self._running = 0
        self.most_running = 0

    async def vocab_size(self) -> int:
        return 10

    async def stream(self, job: Job) -> AsyncGenerator[Chunk]:
        self._running += 1
        self.most_running = max(self.most_running, self._running)
        try:
            for _ in range(job.max_tokens - self._missing):
                await asyncio.sleep(0)
                yield Chunk(1)
            if self._error is not None:
                raise self._error
            yield Chunk(0, RequestTiming(kv_bytes=5))
        finally:
            self._running -= 1

    async def close(self) -> None:
        pass


JOBS = [Job((1, 2), 3)] * 10


async def test_closed_loop_keeps_the_concurrency_and_does_every_job() -> None:
    face = PlayedFace()
    records = await closed_loop(Sender.start(face, 10.0), JOBS, 4)
    assert face.most_running == 4
    assert [(record.num_tokens, record.error) for record in records] == [(3, "")] * 10
    assert all(record.timing == RequestTiming(kv_bytes=5) for record in records)


async def test_open_loop_counts_from_when_a_request_was_due() -> None:
    sender = Sender.start(PlayedFace(), 10.0)
    records = await open_loop(sender, JOBS[:3], [0.0, 0.01, 0.02])
    begin_s = records[0].due_s
    assert [record.due_s - begin_s for record in records] == pytest.approx([0.0, 0.01, 0.02])
    assert all(record.sent_s >= record.due_s for record in records)


@pytest.mark.parametrize(
    ("face", "code"),
    [
        (PlayedFace(error=Overloaded("full", 1.0)), "overloaded"),
        (PlayedFace(missing=1), "wrong_token_count"),
    ],
)
async def test_failures_are_records(face: PlayedFace, code: str) -> None:
    records = await closed_loop(Sender.start(face, 10.0), JOBS, 2)
    assert [record.error for record in records] == [code] * 10


def http_face(answer: Callable[[httpx.Request], httpx.Response]) -> HttpFace:
    return HttpFace("http://service/v1", transport=httpx.MockTransport(answer))


def sse(*events: object) -> str:
    parts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {part}\n\n" for part in parts)


async def collect(face: HttpFace) -> list[Chunk]:
    try:
        return [chunk async for chunk in face.stream(JOBS[0])]
    finally:
        await face.close()


def answering(body: str, status: int = 200) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        asked = json.loads(request.content)
        assert (asked["model"], asked["prompt"], asked["max_tokens"]) == ("m", [1, 2], 3)
        return httpx.Response(status, text=body)

    return answer


async def test_http_counts_tokens_by_usage() -> None:
    def chunk(text: str, total: int) -> dict[str, object]:
        return {"choices": [{"text": text}], "usage": {"completion_tokens": total}}

    end = {"choices": [], "usage": {"completion_tokens": 3}, "pdserve": {"kv_bytes": 7}}
    chunks = await collect(http_face(answering(sse(chunk("a", 1), chunk("", 3), end, "[DONE]"))))
    assert [each.num_tokens for each in chunks] == [1, 2, 0]
    assert chunks[-1].timing == RequestTiming(kv_bytes=7)


async def test_http_counts_chunks_where_usage_is_not_sent() -> None:
    events = [{"choices": [{"text": "a"}]}, {"choices": [{"text": ""}]}]
    chunks = await collect(http_face(answering(sse(*events, "[DONE]"))))
    assert [each.num_tokens for each in chunks] == [1, 0]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (json.dumps({"error": {"message": "full", "code": "overloaded"}}), 429, "overloaded"),
        ("<html>", 502, "http_502"),
        (sse({"error": {"message": "lost", "code": "worker_lost"}}), 200, "worker_lost"),
        (sse({"choices": [{"text": "a"}]}), 200, "connection"),
    ],
)
async def test_http_failures_have_a_code(body: str, status: int, code: str) -> None:
    with pytest.raises(RequestFailed) as failure:
        await collect(http_face(answering(body, status)))
    assert failure.value.code == code
