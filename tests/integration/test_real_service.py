"""The service as its users meet it: SmolLM2 in real processes, the clients people have.

One service for the file, one prefill and one decode worker, float32, greedy throughout: every face
must give the same answer, and the tokens must be those of transformers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import grpc
import httpx
import openai
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai.types.chat import ChatCompletionMessageParam

from cluster.service import ServiceAddress
from pdserve.types import FinishReason
from pdserve.v1 import inference_service_pb2 as pb
from pdserve.v1 import inference_service_pb2_grpc as pb_grpc
from router.client import AsyncClient, Client
from support.local_service import local_service
from support.remote_service import assert_free, assert_settled
from support.source_tree import ROOT
from support.transformers_reading import TransformersReading

pytestmark = [
    pytest.mark.alone,
    pytest.mark.model, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module"),
]  # fmt: skip

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
NUM_PROMPT_TOKENS, NUM_ANSWER_TOKENS = 37, 8  # the template adds a system turn; the end counts
LIMIT = 16
FLAGS = ("--engine=model", "--kv-memory=64")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[ServiceAddress]:
    async with local_service(*FLAGS, "--model=smollm2") as (launcher, _):
        address = launcher.address
        yield address
        async with AsyncClient(address.grpc_target) as client:
            await assert_settled(client, "prefill-0", "decode-0")
    assert_free(address.http_port, address.grpc_port, address.worker_port)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ai(service: ServiceAddress) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{service.http_url}/v1", api_key="unused", max_retries=0
    ) as client:
        yield client


async def greedy(client: AsyncClient, prompt_ids: tuple[int, ...], num_tokens: int) -> list[int]:
    found: list[int] = []
    stream = client.generate(prompt_ids=prompt_ids, max_tokens=num_tokens, temperature=0.0)
    async for delta in stream:
        found.extend(delta.token_ids)
    assert stream.timing is not None
    assert stream.timing.kv_tokens == len(prompt_ids)
    assert stream.timing.kv_transport == "shm"
    return found


async def assert_tokens_of(target: str, reading: TransformersReading) -> None:
    async with AsyncClient(target) as client:
        prompts = list(reading.greedy)
        found = await asyncio.gather(
            *(greedy(client, prompt_ids, len(reading.greedy[prompt_ids])) for prompt_ids in prompts)
        )
        assert dict(zip(prompts, found, strict=True)) == reading.greedy
        await assert_settled(client, "prefill-0", "decode-0")


async def test_tokens_are_those_of_transformers(
    service: ServiceAddress, by_transformers: TransformersReading
) -> None:
    await assert_tokens_of(service.grpc_target, by_transformers)


async def test_tokens_are_those_of_transformers_from_a_folder_too(
    by_transformers: TransformersReading,
    cache_root: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PDSERVE_CACHE", str(cache_root))  # the folder is no model of the user's
    flags = (f"--model={by_transformers.folder}", "--served-model-name=smol")
    async with local_service(*FLAGS, *flags) as (launcher, _):
        assert launcher.address.model_name == "smol"
        await assert_tokens_of(launcher.address.grpc_target, by_transformers)


# --- the openai client -------------------------------------------------------------------------


async def test_openai_chat_whole(ai: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in ai.models.list()] == ["smollm2"]
    reply = await ai.chat.completions.create(
        model="smollm2", messages=CHAT, temperature=0, max_tokens=LIMIT
    )
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert choice.finish_reason == "stop"
    assert reply.model == "smollm2"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == NUM_PROMPT_TOKENS
    assert reply.usage.completion_tokens == NUM_ANSWER_TOKENS
    assert reply.usage.total_tokens == NUM_PROMPT_TOKENS + NUM_ANSWER_TOKENS


async def test_openai_chat_streamed_with_usage_and_logprobs(ai: openai.AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(
        model="smollm2", messages=CHAT, temperature=0, max_tokens=LIMIT, stream=True,
        stream_options={"include_usage": True}, logprobs=True, top_logprobs=2,
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    *parts, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == NUM_ANSWER_TOKENS
    choices = [choice for chunk in parts for choice in chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == ANSWER
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    tokens = [
        token for choice in choices if choice.logprobs for token in choice.logprobs.content or ()
    ]
    assert len(tokens) == NUM_ANSWER_TOKENS
    for token in tokens:
        assert token.logprob <= 0
        best, second = token.top_logprobs
        assert (best.token, best.logprob) == (token.token, token.logprob)  # greedy
        assert second.logprob <= best.logprob
    assert "".join(token.token for token in tokens[:-1]) == ANSWER


async def test_openai_stop_and_length(ai: openai.AsyncOpenAI) -> None:
    reply = await ai.chat.completions.create(
        model="smollm2", messages=CHAT, temperature=0, max_tokens=LIMIT, stop=[" France", "nothing"]
    )
    assert reply.choices[0].message.content == "The capital of"
    assert reply.choices[0].finish_reason == "stop"
    text = await ai.completions.create(
        model="smollm2", prompt="The capital of France", temperature=0, max_tokens=3, logprobs=1
    )
    assert text.choices[0].text.startswith(" is")
    assert text.choices[0].finish_reason == "length"
    logprobs = text.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == text.choices[0].text


async def test_openai_errors_are_the_clients_own(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.chat.completions.create(model="smollm2", messages=CHAT, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        await ai.chat.completions.create(model="other", messages=CHAT)


# --- gRPC --------------------------------------------------------------------------------------


def ask_with_plain_stubs(target: str) -> tuple[str, pb.GenerateResponse, dict[str, object]]:
    """Text, last response, ledger."""
    with grpc.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = pb_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        (model,) = stub.ListModels(pb.ListModelsRequest()).models
        assert (model.name, model.vocab_size) == ("smollm2", 49152)
        assert stub.ClusterStatus(pb.ClusterStatusRequest()).can_serve
        request = pb.GenerateRequest(sampling=pb.SamplingOptions(temperature=0, max_tokens=LIMIT))
        request.messages.messages.add(role="user", content=QUESTION)
        call = stub.Generate(request)
        responses = list(call)
        trailers = {key: value for key, value in call.trailing_metadata()}
    text = "".join(response.text_delta for response in responses)
    return text, responses[-1], json.loads(trailers["pdserve-timing"])


async def test_plain_grpcio(service: ServiceAddress) -> None:
    text, last, ledger = await asyncio.to_thread(ask_with_plain_stubs, service.grpc_target)
    assert text == ANSWER
    assert last.finish_reason == pb.GenerateResponse(finish_reason=1).finish_reason
    assert last.usage.num_completion_tokens == NUM_ANSWER_TOKENS
    assert (ledger["prefill_worker"], ledger["decode_worker"]) == ("prefill-0", "decode-0")
    assert ledger["num_generated_tokens"] == NUM_ANSWER_TOKENS


def ask_with_sync_client(target: str) -> tuple[str, FinishReason | None]:
    with Client(target) as client:
        stream = client.generate(
            messages=[{"role": "user", "content": QUESTION}], max_tokens=LIMIT, temperature=0.0
        )
        deltas = list(stream)
        assert stream.timing is not None
        return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


async def test_the_projects_own_client_sync_and_async(service: ServiceAddress) -> None:
    found = await asyncio.to_thread(ask_with_sync_client, service.grpc_target)
    assert found == (ANSWER, FinishReason.STOP)
    async with AsyncClient(service.grpc_target) as client:
        stream = client.generate(
            messages=[{"role": "user", "content": QUESTION}], max_tokens=LIMIT, temperature=0.0
        )
        assert "".join([delta.text async for delta in stream]) == ANSWER


# --- command lines and pages -------------------------------------------------------------------


async def pdserve(*arguments: str) -> str:
    """Standard output of a command that must end well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cluster", *arguments, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_command_lines(service: ServiceAddress) -> None:
    by_grpc, by_http, status = await asyncio.gather(
        pdserve("generate", QUESTION, f"--grpc-target={service.grpc_target}"),
        pdserve("generate", QUESTION, "--http", f"--http-url={service.http_url}"),
        pdserve("status", "--json", f"--grpc-target={service.grpc_target}"),
    )
    assert by_grpc == by_http == ANSWER + "\n"
    view = json.loads(status)
    assert view["can_serve"]
    assert {worker["role"] for worker in view["workers"]} == {"prefill", "decode"}


async def test_pages_for_machines(service: ServiceAddress) -> None:
    async with httpx.AsyncClient(base_url=service.http_url, timeout=30) as http:
        for path in ("/health", "/ready"):
            assert (await http.get(path)).status_code == 200
        body = {"prompt": "One, two,", "max_tokens": 4, "temperature": 0}
        assert (await http.post("/v1/completions", json=body)).status_code == 200
        samples = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in (await http.get("/metrics")).text.splitlines()
            if not line.startswith("#")
        }
    assert samples["pdserve_generated_tokens_total"] >= 4
    assert samples['pdserve_workers{role="prefill"}'] == 1
    assert samples['pdserve_workers{role="decode"}'] == 1
    assert samples["pdserve_requests_active"] == 0
    assert samples["pdserve_kv_transfer_bytes_count"] >= 1
    for name in ("time_to_first_token", "inter_token_latency"):
        assert samples[f"pdserve_{name}_seconds_count"] >= 1
