"""What hosts the services: health, reflection, ports, and the synchronous client against it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pdserve.errors import ConfigError, InvalidRequest, RequestCancelled, ServiceError
from pdserve.public import GenerateJob
from pdserve.rpc.inference_server import SERVICE_NAME, InferenceServer
from pdserve.rpc.server import GrpcServer, is_loopback
from pdserve.rpc.worker_link import SERVICE_NAME as WORKER_SERVICE
from pdserve.rpc.worker_service import WorkerServiceServer
from router.client import Client
from support.grpc_hosts import RouterEnd, grpc_server
from support.scripted_backend import ANSWER, MODEL, STATUS, TIMING, ScriptedBackend

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def _health(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_follows_the_setter() -> None:
    async with (
        grpc_server(InferenceServer(ScriptedBackend())) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        for serving, answer in ((None, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
            if serving is not None:
                await server.set_serving(serving)
            assert await _health(stub, "") == answer
            assert await _health(stub, SERVICE_NAME) == answer
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _health(stub, "no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_sees_the_change() -> None:
    async with (
        grpc_server(InferenceServer(ScriptedBackend())) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        await server.set_serving(True)
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_reflection_shows_the_public_service_only() -> None:
    workers = WorkerServiceServer(RouterEnd().on_link)
    async with (
        grpc_server(InferenceServer(ScriptedBackend()), workers) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {entry.name for entry in (await call.read()).list_services_response.service}
        await call.done_writing()
    assert SERVICE_NAME in names and "grpc.health.v1.Health" in names
    assert WORKER_SERVICE not in names


async def test_a_client_without_our_protos_calls_by_reflection() -> None:
    """As grpcurl does: the descriptors come from the service, messages are made from JSON."""
    async with (
        grpc_server(InferenceServer(ScriptedBackend())) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        pool = DescriptorPool()
        for file in await _files_with(channel, SERVICE_NAME):
            pool.Add(file)
        service = pool.FindServiceByName(SERVICE_NAME)
        assert [method.name for method in service.methods] == [
            "Generate", "ListModels", "ClusterStatus", "GetTrace", "Explain",
        ]  # fmt: skip
        method = service.methods_by_name["Generate"]
        asked = GetMessageClass(method.input_type)()
        json_format.Parse('{"text": "Hi", "sampling": {"max_tokens": 3}}', asked)
        call = channel.unary_stream(f"/{SERVICE_NAME}/Generate")(asked.SerializeToString())
        told = GetMessageClass(method.output_type)
        parts = [json_format.MessageToDict(told.FromString(data)) async for data in call]
    assert "".join(part.get("textDelta", "") for part in parts) == "Hello wörld"
    assert parts[-1]["finishReason"] == "FINISH_REASON_STOP"


async def _files_with(channel: grpc.aio.Channel, symbol: str) -> list[FileDescriptorProto]:
    """The file that defines a symbol after the files it imports, all by reflection."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    found: dict[str, FileDescriptorProto] = {}

    async def fetch(request: reflection_pb2.ServerReflectionRequest) -> None:
        await call.write(request)
        for data in (await call.read()).file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(data)
            for name in file.dependency:
                if name not in found:
                    await fetch(reflection_pb2.ServerReflectionRequest(file_by_filename=name))
            found.setdefault(file.name, file)

    await fetch(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
    await call.done_writing()
    return list(found.values())


async def test_a_taken_port_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=address):
            await GrpcServer(address, []).start()


async def test_two_servers_do_not_share_a_port() -> None:
    async with grpc_server() as first:
        with pytest.raises(ConfigError):
            await GrpcServer(f"127.0.0.1:{first.port}", []).start()


async def test_stopping_twice_and_before_the_start_is_harmless() -> None:
    server = GrpcServer("127.0.0.1:0", [])
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()


async def test_a_bind_beyond_loopback_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    server = GrpcServer("0.0.0.0:0", [])
    with caplog.at_level(logging.WARNING):
        await server.start()
        await server.stop()
    assert "grpc_listens_beyond_loopback" in caplog.text


@pytest.mark.parametrize(
    ("listen", "answer"),
    [
        ("127.0.0.1:0", True),
        ("127.8.8.8:1", True),
        ("[::1]:0", True),
        ("localhost:0", True),
        ("0.0.0.0:0", False),
        ("[::]:0", False),
        ("10.0.0.1:0", False),
        ("host.example:0", False),
    ],
)
def test_what_counts_as_loopback(listen: str, answer: bool) -> None:
    assert is_loopback(listen) is answer


# --- the synchronous client, with the server on a loop of its own thread ------------------------


class ServedInThread:
    """A server with a loop in a thread, as a program without one meets it."""

    def __init__(self, backend: ScriptedBackend) -> None:
        self._backend = backend
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.address = ""

    def __enter__(self) -> str:
        self._thread.start()
        assert self._ready.wait(10)
        return self.address

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with grpc_server(InferenceServer(self._backend)) as server:
            self.address = f"127.0.0.1:{server.port}"
            self._ready.set()
            await self._over.wait()


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def client(backend: ScriptedBackend) -> Iterator[Client]:
    with ServedInThread(backend) as address, Client(address) as client:
        yield client


def test_the_sync_client_streams(client: Client, backend: ScriptedBackend) -> None:
    stream = client.generate("Hi", max_tokens=5, stop=["a", "b"])
    assert list(stream) == list(ANSWER)
    assert stream.timing == TIMING
    assert stream.request_id == "req-scripted"
    (job,) = backend.jobs
    assert isinstance(job, GenerateJob) and job.stop == ("a", "b")


def test_the_sync_client_lists_and_reports(client: Client) -> None:
    assert client.list_models() == (MODEL,)
    assert client.cluster_status() == STATUS


def test_the_sync_client_raises_what_the_service_raised() -> None:
    refusal = InvalidRequest("top_p", "must lie in (0, 1], not 7")
    with ServedInThread(ScriptedBackend(refusal=refusal)) as address, Client(address) as client:
        with pytest.raises(InvalidRequest) as caught:
            list(client.generate("Hi", top_p=7))
        assert caught.value.field == "top_p"
        assert caught.value.problem == "must lie in (0, 1], not 7"


def test_the_sync_client_cancels() -> None:
    with ServedInThread(ScriptedBackend(error=...)) as address, Client(address) as client:
        stream = client.generate("Hi")
        next(stream)
        stream.cancel()
        with pytest.raises(RequestCancelled):
            list(stream)
        with client.generate("Hi") as stream:
            next(stream)


def test_the_sync_client_without_a_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Client(f"127.0.0.1:{unused.getsockname()[1]}") as client:
            with pytest.raises(ServiceError):
                client.list_models()
            with pytest.raises(ServiceError):
                next(client.generate("Hi"))


def test_a_plain_synchronous_stub() -> None:
    from pdserve.v1 import inference_service_pb2 as pb
    from pdserve.v1 import inference_service_pb2_grpc as pb_grpc

    with (
        ServedInThread(ScriptedBackend()) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = pb_grpc.InferenceServiceStub(channel)
        call = stub.Generate(pb.GenerateRequest(text="Hi"))
        assert "".join(part.text_delta for part in call) == "Hello wörld"
        assert "pdserve-timing" in dict(call.trailing_metadata())
        assert stub.ListModels(pb.ListModelsRequest()).models[0].name == "tiny"
        assert stub.ClusterStatus(pb.ClusterStatusRequest()).workers[0].worker_id == "p0"
