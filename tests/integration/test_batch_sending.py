"""Lines of a batch against a service that refuses, breaks off, is silent or is not there."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import pytest

from cluster.batch.http_client import HttpConnection, ServiceUrl
from cluster.batch.lines import BatchLine, RefusedLine
from cluster.batch.sending import LineEnd, Senders
from pdserve.clock import MonotonicClock
from pdserve.errors import ConfigError, InvalidRequest, PdserveError
from support.scripted_http import http_answer, scripted_http


class EagerClock(MonotonicClock):
    """Does not sleep; remembers for how long it was asked to."""

    def __init__(self) -> None:
        self.pauses_s: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.pauses_s.append(delay_s)
        await asyncio.sleep(0)


def line(number: int, *, wants_timing: bool = False) -> BatchLine:
    body = json.dumps({"n": number}).encode()
    return BatchLine(number, f"c{number}", "/v1/completions", body, wants_timing)


def answer(body: object, status: int = 200, *headers: str) -> bytes:
    return http_answer(status, json.dumps(body).encode(), *headers)


def senders(url: str, clock: EagerClock, *, concurrency: int = 4, timeout_s: float = 60) -> Senders:
    return Senders(
        ServiceUrl.parse(url), clock, concurrency=concurrency, max_tries=3, timeout_s=timeout_s
    )


async def test_every_line_ends_once_with_so_many_at_a_time() -> None:
    running = most = 0

    async def echo(path: str, body: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return answer({"path": path, **json.loads(body), "usage": {"prompt_tokens": 2}})

    ends: list[LineEnd] = []
    async with scripted_http(echo) as service:
        await senders(service.url, EagerClock()).run(map(line, range(1, 51)), ends.append)
        await service.all_closed.wait()
        assert service.num_connections <= 4
    assert sorted(end.result.number for end in ends) == list(range(1, 51))
    assert most <= 4
    for end in ends:
        assert end.result.body["n"] == end.result.number
        assert end.result.custom_id == f"c{end.result.number}"
        assert end.result.body["path"] == "/v1/completions"
        assert (end.measured.num_prompt_tokens, end.num_tries) == (2, 1)


async def test_the_ledger_is_kept_for_those_who_asked_for_it() -> None:
    async def with_ledger(path: str, body: bytes) -> bytes:
        return answer({"pdserve": {"ttft_s": 0.5}}, 200, "X-Request-Id: abc")

    ends: list[LineEnd] = []
    async with scripted_http(with_ledger) as service:
        lines = iter([line(1), line(2, wants_timing=True)])
        await senders(service.url, EagerClock(), concurrency=1).run(lines, ends.append)
    assert [end.result.body for end in ends] == [{}, {"pdserve": {"ttft_s": 0.5}}]
    assert [end.measured.ledger for end in ends] == [{"ttft_s": 0.5}] * 2
    assert [end.result.request_id for end in ends] == ["abc"] * 2


async def one(answers: list[bytes | None], clock: EagerClock) -> LineEnd:
    script = iter(answers)

    async def next_answer(path: str, body: bytes) -> bytes | None:
        return next(script)

    ends: list[LineEnd] = []
    async with scripted_http(next_answer) as service:
        await senders(service.url, clock).run(iter([line(1)]), ends.append)
    assert next(script, "no more") == "no more"
    assert len(ends) == 1
    return ends[0]


GOOD = answer({"text": "x"})
BUSY = answer({"error": {"code": "overloaded"}}, 429, "Retry-After: 7")
BROKEN = answer({"error": {"code": "engine_failure"}}, 500)
BAD = answer({"error": {"code": "invalid_request"}}, 400)
PAGE = http_answer(502, b"<html>")


@pytest.mark.parametrize(
    ("answers", "failure", "pauses_s"),
    [
        ([GOOD], "", []),
        ([BUSY, GOOD], "", [7.0]),
        ([BROKEN, None, GOOD], "", [0.5, 1.0]),
        ([BROKEN, PAGE, BROKEN], "engine_failure", [0.5, 1.0]),
        ([None, None, None], "peer_unreachable", [0.5, 1.0]),
        ([PAGE, PAGE, PAGE], "unavailable", [0.5, 1.0]),
        ([BUSY, BUSY, BUSY], "overloaded", [7.0, 7.0]),
        ([BAD], "invalid_request", []),
        ([b"SSH-2.0\r\n\r\n", GOOD], "", [0.5]),
    ],
)
async def test_failures_of_the_service_are_tried_again_and_no_others(
    answers: list[bytes | None], failure: str, pauses_s: list[float]
) -> None:
    clock = EagerClock()
    end = await one(answers, clock)
    assert end.result.failure == failure
    assert end.num_tries == len(answers)
    assert clock.pauses_s == pauses_s


async def test_an_answer_in_chunks_without_a_length() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    assert (await one([chunked], EagerClock())).result.body == {}


async def test_a_service_that_closes_after_each_answer_is_dialled_anew() -> None:
    async def once(path: str, body: bytes) -> bytes:
        return answer({}, 200, "Connection: close")

    ends: list[LineEnd] = []
    async with scripted_http(once) as service:
        await senders(service.url, EagerClock(), concurrency=1).run(
            map(line, range(1, 4)), ends.append
        )
        assert service.num_connections == 3
    assert [end.num_tries for end in ends] == [1, 1, 1]


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ends: list[LineEnd] = []
    await senders(f"http://127.0.0.1:{port}", EagerClock()).run(iter([line(1)]), ends.append)
    assert ends[0].result.failure == "peer_unreachable"
    assert ends[0].num_tries == 3


async def test_a_silent_service_is_waited_for_so_long() -> None:
    async def never(path: str, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    ends: list[LineEnd] = []
    async with scripted_http(never) as service:
        # A wait that is over at once: what counts is that it ends, and how.
        await senders(service.url, EagerClock(), timeout_s=0).run(iter([line(1)]), ends.append)
    assert ends[0].result.failure == "peer_silent"


async def test_a_stop_takes_no_more_and_tries_nothing_again() -> None:
    ends: list[LineEnd] = []

    async def answering(path: str, body: bytes) -> bytes:
        number = json.loads(body)["n"]
        if number == 2:
            under_test.take_no_more()
            return BROKEN
        return answer({})

    lines: Iterator[BatchLine] = map(line, range(1, 100))
    async with scripted_http(answering) as service:
        under_test = senders(service.url, EagerClock(), concurrency=1)
        await under_test.run(lines, ends.append)
        await service.all_closed.wait()
    assert [end.result.number for end in ends] == [1]
    assert next(lines).number == 3


async def test_a_cancelled_run_leaves_no_connection() -> None:
    waiting = asyncio.Event()

    async def never(path: str, body: bytes) -> bytes:
        waiting.set()
        await asyncio.Event().wait()
        return b""

    async with scripted_http(never) as service:
        under_test = senders(service.url, EagerClock())
        work = asyncio.create_task(under_test.run(map(line, range(1, 9)), print))
        await waiting.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert len([task for task in asyncio.all_tasks() if "_send_lines" in repr(task)]) == 0


async def test_lines_that_are_no_requests_are_never_sent() -> None:
    async def never(path: str, body: bytes) -> bytes:
        raise AssertionError(path)

    refused = [RefusedLine(n, None, InvalidRequest("line", "bad")) for n in (1, 2)]
    ends: list[LineEnd] = []
    async with scripted_http(never) as service:
        await senders(service.url, EagerClock()).run(iter(refused), ends.append)
    assert [(end.result.failure, end.num_tries) for end in ends] == [("invalid_request", 0)] * 2


async def test_a_result_that_cannot_be_kept_ends_the_run() -> None:
    async def good(path: str, body: bytes) -> bytes:
        return answer({})

    def full(end: LineEnd) -> None:
        raise PdserveError("disk full")

    async with scripted_http(good) as service:
        with pytest.raises(PdserveError, match="disk full"):
            await senders(service.url, EagerClock()).run(map(line, range(1, 9)), full)


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("http://h:8000", ("h", 8000, "")),
        ("http://h:8000/v1", ("h", 8000, "")),
        ("http://h/", ("h", 80, "")),
        ("http://[::1]:7/a/b/", ("::1", 7, "/a/b")),
    ],
)
def test_addresses_of_services(url: str, parsed: tuple[str, int, str]) -> None:
    assert ServiceUrl.parse(url) == parsed


@pytest.mark.parametrize("url", ["h:8000", "https://h", "http://", "http://h:x", "http://h?a=b"])
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="service_url"):
        ServiceUrl.parse(url)


async def test_a_connection_that_was_closed_while_idle_is_not_used() -> None:
    async def once(path: str, body: bytes) -> bytes:
        return http_answer(200, b"{}")

    async with scripted_http(once) as first:
        connection = HttpConnection(ServiceUrl.parse(first.url))
        assert (await connection.post("/x", b"{}", {})).status == 200
        connection.close()
        assert (await connection.post("/x", b"{}", {})).status == 200
        connection.close()
        await first.all_closed.wait()
        assert first.num_connections == 2
