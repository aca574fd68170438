"""Bad input over the real faces of a real service: told clearly, and nothing is changed by it.

One service of processes for the whole file, on the fake engine. After each test every pool is full
and a good request gets its tokens. The tables of refusals in full are in tests/unit/http and
tests/integration/test_grpc_generate.py; here is one of each kind, through everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio

from cluster.service import ServiceAddress
from kvtransfer.envelope import seal
from kvtransfer.transports.grpc import METHOD as KV_METHOD
from kvtransfer.transports.grpc import SERVICE as KV_SERVICE
from pdserve.errors import InvalidRequest, Overloaded, UnknownModel
from pdserve.rpc.channel import open_channel
from pdserve.rpc.codec import encode_from_worker
from pdserve.rpc.inference_server import SERVICE_NAME as INFERENCE
from pdserve.rpc.worker_link import SERVICE_NAME as SESSIONS
from pdserve.v1 import inference_service_pb2 as pb
from router.client import AsyncClient, GenerateOptions
from support.grpc_hosts import HELLO, report
from support.local_service import inproc_service, local_service
from support.remote_service import Streams, assert_settled, prompt, status_when

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GENERATE = f"/{INFERENCE}/Generate"
CONNECT = f"/{SESSIONS}/Connect"
KV_READ = f"/{KV_SERVICE}/{KV_METHOD}"
CONTEXT = 512
HELLO_TIMEOUT_S = OPEN_TIMEOUT_S = 0.3
FLAGS = (
    f"--max-model-len={CONTEXT}", f"--hello-timeout-s={HELLO_TIMEOUT_S}",
    f"--open-timeout-s={OPEN_TIMEOUT_S}", "--heartbeat-s=0.1",
)  # fmt: skip
MIB = 1 << 20
NONSENSE = b"\xff\xfe\x00nonsense" * 9


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[ServiceAddress]:
    async with local_service(*FLAGS) as (launcher, said):
        yield launcher.address
        assert not [line for line in said if "Traceback" in line or " died " in line], said


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: ServiceAddress) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.grpc_target) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(service: ServiceAddress) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.http_url, timeout=30) as http:
        yield http


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_changed(client: AsyncClient) -> AsyncIterator[None]:
    incarnations = {w.incarnation for w in (await client.cluster_status()).workers}
    yield
    await Streams(client, [prompt(3)], 5).assert_right()
    await assert_settled(client, "prefill-0", "decode-0")
    assert incarnations == {w.incarnation for w in (await client.cluster_status()).workers}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# --- one request -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": []}, "prompt", "at least one token"),
        ({"prompt": "x" * CONTEXT}, "prompt", f"in the context of {CONTEXT}"),
        ({"prompt": "x" * (CONTEXT - 3)}, "max_tokens", f"more than the context of {CONTEXT}"),
        ({"prompt": [1, 320]}, "prompt", "token id 320 is outside [0, 320)"),
        ({"prompt": [1, -1]}, "prompt", "token id -1 is outside [0, 320)"),
        ({"max_tokens": 0}, "max_tokens", "must lie in [1, "),
        ({"max_tokens": -1}, "max_tokens", "must lie in [1, "),
        ({"temperature": -0.1}, "temperature", "must lie in [0, 100]"),
        ({"temperature": 1e9}, "temperature", "must lie in [0, 100]"),
        ({"top_p": 1.5}, "top_p", "must lie in (0, 1]"),
        ({"top_k": -7}, "top_k", "must lie in [0, "),
        ({"min_p": -1}, "min_p", "must lie in [0, 1]"),
        ({"repetition_penalty": 0}, "repetition_penalty", "must lie in (0, 10]"),
        ({"frequency_penalty": -3}, "frequency_penalty", "must lie in [-2, 2]"),
        ({"logit_bias": {"7": 1000}}, "logit_bias", "100"),
        ({"stop_token_ids": [320]}, "stop_token_ids", "token id 320"),
        ({"seed": 2**64}, "seed", "64-bit"),
        ({"logprobs": 99}, "logprobs", "must lie in [0, 20]"),
        ({"temperature": "warm"}, "temperature", "got `str`"),
        ({"stream": 1}, "stream", "got `int`"),
        ({"prompt": {"text": "x"}}, "prompt", "got `object`"),
        ({"prompt": [1.5]}, "prompt[0]", "got `float`"),
    ],
)  # fmt: skip
async def test_http_refuses_a_field(
    http: httpx.AsyncClient, fields: dict[str, Any], field: str, problem: str
) -> None:
    response = await http.post(COMPLETIONS, json={"prompt": "hello", **fields})
    error = error_of(response, 400)
    assert error["type"] == "invalid_request_error"
    code = "context_length_exceeded" if "context of" in problem else "invalid_request"
    assert (error["param"], error["code"]) == (field, code)
    assert problem in error["message"]


GRPC_REFUSALS: tuple[tuple[GenerateOptions, str, str], ...] = (
    ({"prompt_ids": []}, "prompt", "at least one token"),
    ({"prompt_ids": [7] * CONTEXT}, "prompt", f"in the context of {CONTEXT}"),
    ({"max_tokens": CONTEXT}, "max_tokens", f"more than the context of {CONTEXT}"),
    ({"prompt_ids": [2**40]}, "prompt", "outside [0, 320)"),
    ({"max_tokens": -5}, "max_tokens", "must lie in"),
    ({"temperature": float("nan")}, "temperature", "must lie in [0, 100]"),
    ({"temperature": float("inf")}, "temperature", "must lie in [0, 100]"),
    ({"top_p": 0.0}, "top_p", "must lie in (0, 1]"),
    ({"min_p": 2.0}, "min_p", "must lie in [0, 1]"),
    ({"seed": -1}, "seed", "must lie in"),
    ({"num_logprobs": 21}, "num_logprobs", "must lie in [0, 20]"),
    ({"logit_bias": {320: 1.0}}, "logit_bias", "token id 320"),
    ({"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"request_id": "é" * 200}, "request_id", "128"),
    ({"priority": 2**60}, "priority", "must lie in"),
    ({"timeout_s": -1.0}, "timeout_s", "must lie in"),
)


@pytest.mark.parametrize(("options", "field", "problem"), GRPC_REFUSALS)
async def test_grpc_refuses_a_field(
    client: AsyncClient, options: GenerateOptions, field: str, problem: str
) -> None:
    text = None if "prompt_ids" in options else "hello"
    with pytest.raises(InvalidRequest) as caught:
        async for _ in client.generate(text, **options):
            pass
    assert caught.value.field == field
    assert problem in str(caught.value)


async def test_an_empty_text_by_grpc(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="prompt: must not be empty"):
        await anext(aiter(client.generate("")))


async def test_another_model(http: httpx.AsyncClient, client: AsyncClient) -> None:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "x"}]}
    error = error_of(await http.post(CHAT, json=body), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'fake'" in error["message"]
    with pytest.raises(UnknownModel, match="'gpt-4' is not served here, only 'fake'"):
        await anext(aiter(client.generate("x", model="gpt-4")))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "is not valid JSON"),
        (b'{"prompt": "\xff\xfe"}', "is not valid UTF-8"),
        (b'{"prompt": "\\ud800"}', "is not valid JSON"),
        (b'{"prompt": "x"', "is not valid JSON"),
        (b'{"metadata": ' + b"[" * 100_000, "nested too deeply"),
        (b'["prompt"]', "got `array`"),
    ],
    ids=["nothing", "utf-8", "surrogate", "cut", "deep", "list"],
)
async def test_http_bodies_that_are_no_request(
    http: httpx.AsyncClient, body: bytes, problem: str
) -> None:
    error = error_of(await http.post(COMPLETIONS, content=body), 400)
    assert error["param"] == "body"
    assert problem in error["message"]


async def test_fifty_megabytes_by_http(http: httpx.AsyncClient) -> None:
    response = await http.post(COMPLETIONS, content=b'{"prompt": "' + b"x" * (50 * MIB) + b'"}')
    assert str(8 * MIB) in error_of(response, 413)["message"]


# --- bytes that are no message -----------------------------------------------------------------


async def call_of(
    address: str, method: str, messages: Iterable[bytes], *, limit: int = 64 * MIB
) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """A stream of these bytes, left open at this end: code, text and trailers of its end."""
    async with asyncio.timeout(30), open_channel(address, limit) as channel:
        call = channel.stream_stream(method)()
        try:
            for message in messages:
                await call.write(message)
            while await call.read() is not grpc.aio.EOF:
                pass
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        trailers = {key: str(value) for key, value in await call.trailing_metadata() or ()}
        return await call.code(), await call.details() or "", trailers


@pytest.mark.parametrize(
    "data", [NONSENSE, b"\x08", b"\x1a\x05ab", b"\x1a\x02\xff\xfe"],
    ids=["nonsense", "cut", "length", "utf-8"],
)  # fmt: skip
async def test_malformed_protobuf_for_generate(service: ServiceAddress, data: bytes) -> None:
    async with open_channel(service.grpc_target) as channel:
        call = channel.unary_stream(GENERATE)(data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_fifty_megabytes_by_grpc(service: ServiceAddress) -> None:
    data = pb.GenerateRequest(text="x" * (50 * MIB)).SerializeToString()
    async with open_channel(service.grpc_target, 64 * MIB) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_stream(GENERATE)(data).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(8 * MIB) in (caught.value.details() or "")


# --- peers of the inner ports ------------------------------------------------------------------


async def test_a_worker_port_peer_that_says_nothing(service: ServiceAddress) -> None:
    code, text, trailers = await call_of(service.worker_target, CONNECT, [])
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert f"no Hello within {HELLO_TIMEOUT_S:g} s" in text
    assert trailers["pdserve-error-code"] == "protocol_error"


@pytest.mark.parametrize(
    ("message", "error", "problem"),
    [
        (NONSENSE, "protocol_error", "Error parsing"),
        (b"", "unknown_message", "of an unknown kind"),
        (encode_from_worker(report(1)), "protocol_error", "StepReport, not Hello"),
        (encode_from_worker(HELLO), "incompatible_worker", "model_fingerprint of tiny is f"),
    ],
    ids=["nonsense", "nothing", "report", "another model"],
)
async def test_a_worker_port_peer_that_is_no_worker_of_ours(
    service: ServiceAddress, message: bytes, error: str, problem: str
) -> None:
    code, text, trailers = await call_of(service.worker_target, CONNECT, [message])
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert problem in text
    assert trailers["pdserve-error-code"] == error


async def kv_address(client: AsyncClient) -> str:
    (address,) = [
        endpoint.address
        for worker in (await client.cluster_status()).workers
        for endpoint in worker.endpoints
        if endpoint.transport == "grpc"
    ]
    return address


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [NONSENSE],
        [b""],
        [seal(1, {"ticket_id": "t"})],
        [seal(4, {})],
        [seal(99, {})],
    ],
    ids=["silent", "nonsense", "nothing", "half an Open", "a Frame", "unknown type"],
)
async def test_a_kv_port_peer_that_is_no_reader(client: AsyncClient, messages: list[bytes]) -> None:
    """Cut off, after OPEN_TIMEOUT_S at the latest; nothing was offered to it."""
    await call_of(await kv_address(client), KV_READ, messages)


@pytest.mark.parametrize("port", ["http", "grpc", "worker", "kv"])
@pytest.mark.parametrize("data", [b"", b"GET / HTTP/0.9 \r\n\x00\r\n\r\n", NONSENSE * 99])
async def test_raw_bytes_at_every_port_disturb_nobody(
    service: ServiceAddress, client: AsyncClient, port: str, data: bytes
) -> None:
    """The peer stays connected while others are served."""
    address = {
        "http": f"{service.host}:{service.http_port}", "grpc": service.grpc_target,
        "worker": service.worker_target, "kv": await kv_address(client),
    }[port]  # fmt: skip
    host, _, number = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(number))
    writer.write(data)
    await Streams(client, [prompt(1), prompt(2)], 10).assert_right()
    writer.transport.abort()


# --- too much ----------------------------------------------------------------------------------


async def test_overload_is_told_with_a_time_to_come_back() -> None:
    async with (
        inproc_service("--max-queue=1", "--decode-max-running=1", "--fake-decode-ms=50") as full,
        AsyncClient(full.address.grpc_target) as client,
        httpx.AsyncClient(base_url=full.address.http_url) as http,
    ):
        running = Streams(client, [prompt(1)], 12)
        await status_when(client, lambda s: (s.num_in_flight, s.num_queued) == (1, 0))
        waiting = Streams(client, [prompt(2)], 5)
        await status_when(client, lambda s: (s.num_in_flight, s.num_queued) == (2, 1))
        response = await http.post(COMPLETIONS, json={"prompt": "x"})
        error = error_of(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
        assert "the queue is full (1 request" in error["message"]
        assert int(response.headers["retry-after"]) >= 1
        with pytest.raises(Overloaded) as caught:
            await anext(aiter(client.generate("x")))
        assert caught.value.retry_after_s >= 1
        async with open_channel(full.address.grpc_target) as channel:
            call = channel.unary_stream(GENERATE)(pb.GenerateRequest(text="x").SerializeToString())
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers = {key: value for key, value in await call.trailing_metadata() or ()}
        assert int(trailers["retry-after-ms"]) >= 1000
        await running.assert_right()
        await waiting.assert_right()
        await assert_settled(client, "prefill-0", "decode-0")
