"""The public gRPC face over a real socket, in front of a scripted service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from pdserve.errors import (
    InvalidRequest,
    Overloaded,
    PdserveError,
    RequestCancelled,
    UnknownRequest,
    all_errors,
)
from pdserve.public import (
    ChatMessage,
    GenerateDelta,
    GenerateJob,
    SampledToken,
    SamplingOptions,
    TokenText,
)
from pdserve.rpc.inference_server import InferenceServer
from pdserve.rpc.status import timing_from_metadata
from pdserve.v1 import inference_service_pb2 as pb
from pdserve.v1 import inference_service_pb2_grpc as pb_grpc
from router.client import AsyncClient
from support.grpc_hosts import grpc_server
from support.scripted_backend import ANSWER, MODEL, RECORD, STATUS, TIMING, ScriptedBackend

ENDLESS = (GenerateDelta("x" * 65536, (1,)),) * 5000


@asynccontextmanager
async def service(
    backend: ScriptedBackend, stalled_write_s: float = 30.0
) -> AsyncIterator[tuple[AsyncClient, str]]:
    face = InferenceServer(backend, stalled_write_s=stalled_write_s)
    async with grpc_server(face) as server, asyncio.timeout(20):
        address = f"127.0.0.1:{server.port}"
        async with AsyncClient(address) as client:
            yield client, address


@asynccontextmanager
async def stub(address: str) -> AsyncIterator[pb_grpc.InferenceServiceStub]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield pb_grpc.InferenceServiceStub(channel)


def _error_of(cls: type[PdserveError]) -> PdserveError:
    if issubclass(cls, InvalidRequest):
        return cls("top_p", "must lie in (0, 1], not 7")
    if issubclass(cls, Overloaded):
        return cls("queue is full", 2.5)
    return cls("what happened")


async def test_the_answer_streams_and_the_ledger_follows() -> None:
    async with service(ScriptedBackend()) as (client, _):
        stream = client.generate("Hi")
        assert stream.timing is None
        assert [delta async for delta in stream] == list(ANSWER)
        assert stream.timing == TIMING
        assert stream.request_id == "req-scripted"
        assert await client.request_record("req-scripted") == RECORD
        with pytest.raises(UnknownRequest, match="no request 'other'"):
            await client.request_record("other")
        with pytest.raises(InvalidRequest, match="request_id: must not be empty"):
            await client.request_record("")


async def test_every_piece_that_is_written_is_told() -> None:
    backend = ScriptedBackend()
    async with service(backend) as (client, _):
        assert len([delta async for delta in client.generate("Hi")]) == len(ANSWER)
        assert (await backend.streams.get()).num_first_pieces == 1


async def test_several_answers_are_told_apart_by_index() -> None:
    deltas = tuple(replace(delta, answer_index=i) for delta in ANSWER for i in (0, 1))
    backend = ScriptedBackend(deltas)
    async with service(backend) as (client, _):
        found = [delta async for delta in client.generate("Hi", num_answers=2)]
        assert found == list(deltas)
        assert [job.num_answers for job in backend.jobs] == [2]


async def test_everything_asked_for_arrives() -> None:
    sampling = SamplingOptions(
        max_tokens=7,
        min_tokens=0,
        temperature=0.0,
        top_k=4,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1.0,
        frequency_penalty=0.25,
        logit_bias=((3, -5.0), (9, 1.5)),
        seed=0,
        stop_token_ids=(11, 12),
        ignore_eos=True,
        num_logprobs=0,
    )
    backend = ScriptedBackend()
    async with service(backend) as (client, _):
        stream = client.generate(
            messages=[
                ChatMessage("system", "Be brief."),
                {"role": "user", "content": "Grüße", "name": "ann"},
            ],
            model="tiny",
            request_id="mine",
            stop="\n\n",
            priority=-3,
            timeout_s=60.0,
            max_tokens=7,
            min_tokens=0,
            temperature=0.0,
            top_k=4,
            top_p=0.5,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=-1.0,
            frequency_penalty=0.25,
            logit_bias={3: -5.0, 9: 1.5},
            seed=0,
            stop_token_ids=[11, 12],
            ignore_eos=True,
            num_logprobs=0,
        )
        assert len([delta async for delta in stream]) == len(ANSWER)
    assert backend.jobs == [
        GenerateJob(
            messages=(ChatMessage("system", "Be brief."), ChatMessage("user", "Grüße", "ann")),
            sampling=sampling,
            stop=("\n\n",),
            model="tiny",
            request_id="mine",
            priority=-3,
            timeout_s=60.0,
        )
    ]


async def test_what_is_left_out_is_left_to_the_service() -> None:
    backend = ScriptedBackend()
    async with service(backend) as (client, _):
        async for _ in client.generate(prompt_ids=[1, -2, 3]):
            pass
    assert backend.jobs == [GenerateJob(prompt_ids=(1, -2, 3))]


async def test_logprobs_arrive() -> None:
    token = TokenText(5, "\ufffd", b"\xc3", -0.5)
    delta = GenerateDelta("", (5,), (SampledToken(token, (token, token)),))
    async with service(ScriptedBackend((delta,))) as (client, _):
        assert [each async for each in client.generate("Hi")] == [delta]


@pytest.mark.parametrize("error_class", all_errors().values(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("late", [False, True], ids=["refused", "midway"])
async def test_every_error_comes_back_as_itself(
    error_class: type[PdserveError], late: bool
) -> None:
    error = _error_of(error_class)
    backend = ScriptedBackend(error=error) if late else ScriptedBackend(refusal=error)
    async with service(backend) as (client, _):
        stream = client.generate("Hi")
        received = []
        with pytest.raises(PdserveError) as caught:
            async for delta in stream:
                received.append(delta)
    assert type(caught.value) is error_class
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)
    assert received == (list(ANSWER) if late else [])
    assert stream.timing == (TIMING if late else None)


async def test_a_plain_stub_reads_code_text_and_trailers() -> None:
    backend = ScriptedBackend(error=Overloaded("queue is full", 2.5))
    async with service(backend) as (_, address), stub(address) as plain:
        call = plain.Generate(pb.GenerateRequest(text="Hi"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "queue is full"
    trailers = dict(caught.value.trailing_metadata())
    assert trailers["pdserve-error-code"] == "overloaded"
    assert trailers["retry-after-ms"] == "2500"
    assert json.loads(trailers["pdserve-timing"])["ttft_s"] == TIMING.ttft_s
    assert timing_from_metadata(tuple(trailers.items())) == TIMING


async def test_a_plain_stub_streams() -> None:
    async with service(ScriptedBackend()) as (_, address), stub(address) as plain:
        call = plain.Generate(pb.GenerateRequest(text="Hi"))
        parts = [part async for part in call]
    assert "".join(part.text_delta for part in parts) == "Hello wörld"
    assert parts[-1].usage.num_completion_tokens == 4
    assert not parts[0].HasField("usage")


async def test_an_error_with_text_that_is_no_header_text() -> None:
    refusal = InvalidRequest("messages[0].naïve\nfield", "is “odd”\n" + "long " * 1000)
    async with service(ScriptedBackend(refusal=refusal)) as (client, _):
        with pytest.raises(InvalidRequest, match="is “odd”"):
            await anext(client.generate("Hi"))


async def test_cancelling_the_call_cancels_the_generation() -> None:
    backend = ScriptedBackend(error=...)
    async with service(backend) as (client, _):
        stream = client.generate("Hi")
        await anext(stream)
        running = await backend.streams.get()
        stream.cancel()
        assert await running.cancelled == "client left"
        with pytest.raises(RequestCancelled):
            async for _ in stream:
                pass


async def test_a_reader_that_is_cancelled_stays_cancelled() -> None:
    backend = ScriptedBackend(error=...)
    async with service(backend) as (client, _):
        stream = client.generate("Hi")
        for _ in ANSWER:
            await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await (await backend.streams.get()).cancelled == "client left"


async def test_leaving_the_stream_cancels_the_generation() -> None:
    backend = ScriptedBackend(error=...)
    async with service(backend) as (client, _):
        async with client.generate("Hi") as stream:
            async for _ in stream:
                break
        assert await (await backend.streams.get()).cancelled == "client left"


async def test_closing_the_client_cancels_the_generation() -> None:
    backend = ScriptedBackend(error=...)
    async with service(backend) as (_, address):
        async with AsyncClient(address) as client:
            await anext(client.generate("Hi"))
        assert await (await backend.streams.get()).cancelled == "client left"


async def test_the_deadline_of_the_call_is_the_requests() -> None:
    backend = ScriptedBackend(error=...)
    async with service(backend) as (_, address), stub(address) as plain:
        call = plain.Generate(pb.GenerateRequest(text="Hi", timeout_s=100), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        running = await backend.streams.get()
        assert await running.cancelled == "client left"
    (job,) = backend.jobs
    assert job.timeout_s is not None and 0 < job.timeout_s < 1


async def test_the_shorter_of_two_timeouts_counts() -> None:
    backend = ScriptedBackend()
    async with service(backend) as (_, address), stub(address) as plain:
        async for _ in plain.Generate(pb.GenerateRequest(text="Hi", timeout_s=5), timeout=100):
            pass
        async for _ in plain.Generate(pb.GenerateRequest(text="Hi"), timeout=10**8):
            pass
    assert [job.timeout_s for job in backend.jobs] == [5, None]


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    backend = ScriptedBackend(ENDLESS)
    async with service(backend, stalled_write_s=0.2) as (client, _):
        stream = client.generate("Hi")
        await anext(stream)
        running = await backend.streams.get()
        assert await running.cancelled == "client takes nothing"
        assert running.num_sent < len(ENDLESS)
        with pytest.raises(RequestCancelled, match="took nothing"):
            async for _ in stream:
                pass


_BROKEN = [b"\xff", b"\x1a\x05Hi", b"GET / HTTP/1.1\r\n\r\n"]


@pytest.mark.parametrize(
    "method", ["Generate", "ListModels", "ClusterStatus", "GetTrace", "Explain"]
)
@pytest.mark.parametrize("data", _BROKEN)
async def test_malformed_protobuf_is_bad_input_and_harms_nothing(method: str, data: bytes) -> None:
    backend = ScriptedBackend()
    async with service(backend) as (client, address):
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_stream(f"/pdserve.v1.InferenceService/{method}")(data)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert backend.jobs == []
        assert [delta async for delta in client.generate("Hi")] == list(ANSWER)


async def test_invalid_utf8_is_bad_input() -> None:
    async with (
        service(ScriptedBackend()) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        generate = channel.unary_stream("/pdserve.v1.InferenceService/Generate")
        assert await generate(b"\x1a\x02\xff\xfe").code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GenerateRequest(), "prompt"),
        (pb.GenerateRequest(text="Hi", timeout_s=float("nan")), "timeout_s"),
        (pb.GenerateRequest(text="Hi", request_id="a\nb"), "request_id"),
        (pb.GenerateRequest(text="Hi", request_id="a" * 129), "request_id"),
    ],
)
async def test_a_fault_of_form_names_the_field(request_: pb.GenerateRequest, field: str) -> None:
    backend = ScriptedBackend()
    async with service(backend) as (_, address), stub(address) as plain:
        call = plain.Generate(request_)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert ("pdserve-error-field", field) in tuple(await call.trailing_metadata())
    assert backend.jobs == []


async def test_a_request_over_the_limit_is_refused_and_harms_nothing() -> None:
    async with service(ScriptedBackend()) as (client, address), stub(address) as plain:
        call = plain.Generate(pb.GenerateRequest(text="x" * (50 * 2**20)))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [delta async for delta in client.generate("Hi")] == list(ANSWER)


async def test_what_cannot_be_sent_is_refused_before_sending() -> None:
    async with service(ScriptedBackend()) as (client, _):
        with pytest.raises(InvalidRequest):
            client.generate(prompt_ids=[2**70])
        with pytest.raises(InvalidRequest, match="exactly one"):
            client.generate("Hi", prompt_ids=[1])
        with pytest.raises(InvalidRequest, match="exactly one"):
            client.generate()
        with pytest.raises(InvalidRequest, match=r"messages\[0\]: needs role and content"):
            client.generate(messages=[{"role": "user", "text": "Hi"}])


async def test_models_and_status() -> None:
    async with service(ScriptedBackend()) as (client, _):
        assert await client.list_models() == (MODEL,)
        assert await client.cluster_status() == STATUS


async def test_nobody_listens() -> None:
    async with service(ScriptedBackend()) as (_, address):
        pass
    async with AsyncClient(address) as client:
        with pytest.raises(PdserveError) as caught:
            await client.list_models()
        assert caught.value.code == "unavailable"
        with pytest.raises(PdserveError) as caught:
            await anext(client.generate("Hi"))
        assert caught.value.code == "unavailable"


async def test_a_stopping_server_lets_a_stream_finish_within_its_grace() -> None:
    backend = ScriptedBackend()
    async with (
        grpc_server(InferenceServer(backend)) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        stream = client.generate("Hi")
        first = await anext(stream)
        stopping = asyncio.create_task(server.stop(grace_s=10))
        assert [first, *[delta async for delta in stream]] == list(ANSWER)
        await stopping
