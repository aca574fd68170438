"""The service as its users meet it: SmolLM2 in real processes, the clients people have."""

from __future__ import annotations

import asyncio

import grpc
import openai
import pytest

from pdserve.v1 import inference_service_pb2 as pb
from pdserve.v1 import inference_service_pb2_grpc as pb_grpc
from router.client import AsyncClient
from support.local_service import local_service

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

QUESTION = "What is the capital of France?"
MODEL = ("--engine=model", "--model=smollm2", "--kv-memory=64")


def ask_by_openai(base_url: str) -> tuple[str, str, int]:
    """The streamed text, the whole text, and its completion tokens."""
    messages = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused") as client:
        assert [model.id for model in client.models.list()] == ["smollm2"]
        stream = client.chat.completions.create(
            model="smollm2", messages=messages, stream=True, temperature=0, max_tokens=16  # type: ignore[arg-type]
        )  # fmt: skip
        streamed = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        whole = client.chat.completions.create(
            model="smollm2", messages=messages, temperature=0, max_tokens=16  # type: ignore[arg-type]
        )  # fmt: skip
        assert whole.usage is not None
        return streamed, whole.choices[0].message.content or "", whole.usage.completion_tokens


def ask_by_grpcio(target: str) -> str:
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.GenerateRequest()
        request.messages.messages.add(role="user", content=QUESTION)
        request.sampling.temperature = 0.0
        request.sampling.max_tokens = 16
        return "".join(response.text_delta for response in stub.Generate(request))


async def test_every_client_gets_the_same_answer_and_nothing_is_left() -> None:
    async with local_service(*MODEL) as (service, _):
        address = service.address
        streamed, whole, num_tokens = await asyncio.to_thread(ask_by_openai, address.http_url)
        by_grpc = await asyncio.to_thread(ask_by_grpcio, address.grpc_target)
        assert "Paris" in streamed
        assert streamed == whole == by_grpc
        assert 1 <= num_tokens <= 16
        async with AsyncClient(address.grpc_target) as client:
            status = await client.cluster_status()
            for worker in status.workers:
                assert worker.status.free_blocks == worker.status.total_blocks
