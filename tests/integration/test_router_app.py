"""The router's application on loopback: ports, health that follows the pools, nothing left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.fake_model import prepare_fake_model
from pdserve.clock import MonotonicClock
from pdserve.errors import (
    ConfigError,
    ModelFileError,
    RequestCancelled,
    ShuttingDown,
    WorkerLost,
)
from pdserve.links import QueueLink, WorkerLink, link_pair
from pdserve.messages import FromWorker, Hello, Meet, Submit, ToWorker, Welcome
from pdserve.prepared import PreparedModel
from pdserve.rpc.worker_link import dial_router
from pdserve.types import Leg, Role
from router.app import RouterApp
from router.client import AsyncClient
from router.config import RouterConfig
from support.scripted_worker import make_hello, settle
from support.tasks import none_left

CONFIG = RouterConfig(http_port=0, grpc_port=0, worker_port=0)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("", "pdserve.v1.InferenceService")


@pytest.fixture
def model(tmp_path: Path) -> PreparedModel:
    return prepare_fake_model(tmp_path)


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await none_left(before, ("link", "router", "session", "health", "inproc"))


def hello_of(app: RouterApp, worker_id: str, role: Role) -> Hello:
    return make_hello(worker_id, role, model_fingerprint=app.model.fingerprint)


@asynccontextmanager
async def joined(app: RouterApp, worker_id: str, role: Role) -> AsyncIterator[WorkerLink]:
    link = await dial_router(f"127.0.0.1:{app.worker_port}")
    try:
        async with asyncio.timeout(20):
            await link.send(hello_of(app, worker_id, role))
            assert isinstance(await link.receive(), Welcome)
            yield link
    finally:
        await link.close()


@asynccontextmanager
async def health_of(app: RouterApp, service: str) -> AsyncIterator[Callable[[int], object]]:
    """``await expect(status)`` reads answers of a health watch until it is that one."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=service)
        )

        async def expect(status: int) -> None:
            async with asyncio.timeout(20):
                while (await watch.read()).status != status:
                    pass

        yield expect
        watch.cancel()


async def ready(app: RouterApp) -> tuple[int, str]:
    """Status and problem."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.http_port}") as client:
        response = await client.get("/ready")
        return response.status_code, response.json().get("problem", "")


async def test_entering_binds_three_ports_and_leaving_frees_them(model: PreparedModel) -> None:
    async with RouterApp(CONFIG, model, MonotonicClock()) as app:
        ports = (app.http_port, app.grpc_port, app.worker_port)
        assert len(set(ports)) == 3
        assert min(ports) > 0
        for port in ports:
            socket.create_connection(("127.0.0.1", port)).close()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


async def test_the_model_is_that_of_the_folder_under_the_name_asked_for(
    model: PreparedModel,
) -> None:
    plain = RouterApp(CONFIG, model, MonotonicClock())
    named = RouterApp(replace(CONFIG, served_model_name="mine"), model, MonotonicClock())
    assert (plain.model.name, named.model.name) == (model.name, "mine")
    assert plain.model.fingerprint == named.model.fingerprint == model.fingerprint
    assert plain.model.eos_token_ids == model.eos_token_ids


def test_a_folder_without_tokenizer_is_refused(model: PreparedModel) -> None:
    model.tokenizer_path.unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        RouterApp(CONFIG, model, MonotonicClock())


@pytest.mark.parametrize("service", SERVICES)
async def test_health_and_readiness_follow_the_pools(model: PreparedModel, service: str) -> None:
    async with (
        RouterApp(CONFIG, model, MonotonicClock()) as app,
        health_of(app, service) as expect,
    ):
        await expect(NOT_SERVING)
        assert await ready(app) == (503, "no prefill and no decode worker")
        async with joined(app, "P1", Role.PREFILL):
            assert await ready(app) == (503, "no decode worker")
            async with joined(app, "D1", Role.DECODE):
                await expect(SERVING)
                assert await ready(app) == (200, "")
            await expect(NOT_SERVING)
            async with joined(app, "D2", Role.DECODE):
                await expect(SERVING)
                await app.drain(0.0)
                await expect(NOT_SERVING)
                assert await ready(app) == (503, "the router is shutting down")


@pytest.mark.parametrize(
    "options", [{"prefill_place": "always-local"}, {"without_prefill_worker": "local"}]
)
async def test_ready_by_decode_workers_alone(model: PreparedModel, options: dict[str, str]) -> None:
    """At both faces, answers included; a prefill worker that comes and goes changes nothing."""
    config = replace(CONFIG, **options)
    async with (
        RouterApp(config, model, MonotonicClock()) as app,
        health_of(app, SERVICES[1]) as expect,
    ):
        await expect(NOT_SERVING)
        assert await ready(app) == (503, "no decode worker")
        async with joined(app, "P1", Role.PREFILL):
            assert await ready(app) == (503, "no decode worker")
        async with joined(app, "D1", Role.DECODE) as decode:
            await expect(SERVING)
            assert await ready(app) == (200, "")
            async with AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
                view = await client.cluster_status()
                assert (view.can_serve, view.mode) == (True, "disaggregated")
                assert view.model.max_model_len == decode_len(app)
                stream = client.generate("Hi", max_tokens=5)
                asking = asyncio.create_task(anext(stream))
                submit = await decode.receive()
                assert isinstance(submit, Submit)
                assert submit.leg is Leg.COLOCATED
                stream.cancel()
                with pytest.raises(RequestCancelled):
                    await asking
        await expect(NOT_SERVING)
        assert await ready(app) == (503, "no decode worker")


@pytest.mark.parametrize("place", ["always-remote", "adaptive"])
async def test_others_are_not_ready_without_a_prefill_worker(
    model: PreparedModel, place: str
) -> None:
    config = replace(CONFIG, prefill_place=place)
    async with RouterApp(config, model, MonotonicClock()) as app, joined(app, "D1", Role.DECODE):
        assert await ready(app) == (503, "no prefill worker")


def decode_len(app: RouterApp) -> int:
    limits = hello_of(app, "D1", Role.DECODE).limits
    return min(app.model.max_model_len, limits.max_model_len)


async def test_workers_of_the_process_are_served_without_a_port(model: PreparedModel) -> None:
    async with RouterApp(replace(CONFIG, mode="colocated"), model, MonotonicClock()) as app:
        worker, link = link_pair()
        app.accept(link)
        await worker.send(hello_of(app, "D1", Role.DECODE))
        async with asyncio.timeout(20):
            assert isinstance(await worker.receive(), Welcome)
        assert app.router.status().can_serve()
    with pytest.raises(WorkerLost):
        await worker.receive()


async def test_leaving_cancels_what_runs_and_ends_every_session(model: PreparedModel) -> None:
    async with RouterApp(CONFIG, model, MonotonicClock()) as app:
        async with (
            joined(app, "P1", Role.PREFILL) as prefill,
            joined(app, "D1", Role.DECODE) as decode,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.http_port}") as client,
        ):
            body = {"prompt": "Hi", "max_tokens": 5}
            asking = asyncio.create_task(client.post("/v1/completions", json=body, timeout=20))
            assert isinstance(await decode.receive(), Meet)
            for link in (prefill, decode):
                assert isinstance(await link.receive(), Submit)
            await app.__aexit__(None, None, None)  # leaving it again below changes nothing
            for link in (prefill, decode):
                await ended(link)
            (answer,) = await asyncio.gather(asking, return_exceptions=True)
            assert isinstance(answer, httpx.TransportError) or answer.status_code == 503
        assert app.router.status().num_in_flight == 0
        assert app.router.status().workers == ()


async def ended(link: WorkerLink) -> None:
    """Read to the end of a session that the router ends."""
    with pytest.raises(WorkerLost):
        while True:
            await link.receive()


@pytest.mark.parametrize("name", ["http_port", "grpc_port", "worker_port"])
async def test_a_port_that_is_taken_is_named_and_the_others_are_freed(
    model: PreparedModel, name: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        app = RouterApp(replace(CONFIG, **{name: taken}), model, MonotonicClock())
        with pytest.raises(ConfigError, match=str(taken)):
            await app.__aenter__()
        for port in {app.grpc_port, app.worker_port} - {0, taken}:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))


async def test_a_worker_that_comes_after_the_end_is_sent_away(model: PreparedModel) -> None:
    async with RouterApp(CONFIG, model, MonotonicClock()) as app:
        pass
    ends: tuple[QueueLink[FromWorker, ToWorker], QueueLink[ToWorker, FromWorker]] = link_pair()
    worker, link = ends
    app.accept(link)
    with pytest.raises(ShuttingDown):
        await worker.receive()
    await settle()
