"""SIGKILL and SIGSTOP of real processes, KV over gRPC, fake engine.

Every stream must end with the tokens that the plain oracle gives, every block must be back, and no
process or port may be left.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from cluster.local import LocalService
from cluster.ready import WorkerReady
from pdserve.errors import ServiceError
from pdserve.types import Role
from router.client import AsyncClient
from support.local_service import local_service
from support.remote_service import (
    Streams,
    assert_free,
    assert_settled,
    is_empty,
    prompt,
    status_when,
)
from support.trio import eventually

pytestmark = pytest.mark.alone

NUM_STREAMS = 64
PROMPTS = [prompt(number) for number in range(NUM_STREAMS)]
STEPS = ("--fake-decode-ms=10", "--fake-prefill-us=100", "--heartbeat-s=0.1")
WORKERS = ("prefill-0", "decode-0")


@asynccontextmanager
async def served(*flags: str) -> AsyncIterator[tuple[LocalService, AsyncClient]]:
    """A service and a client; afterwards the ports are free as well as the processes gone."""
    async with local_service(*STEPS, *flags) as (service, _):
        address = service.address
        async with AsyncClient(address.grpc_target) as client:
            yield service, client
    assert_free(address.http_port, address.grpc_port, address.worker_port)


def report_of(service: LocalService, name: str) -> WorkerReady:
    report = service.workers[name].report
    assert isinstance(report, WorkerReady)
    return report


@pytest.mark.parametrize("victim", WORKERS)
@pytest.mark.parametrize("num_read", [0, NUM_STREAMS * 5])
async def test_a_worker_killed_under_load_loses_no_stream(victim: str, num_read: int) -> None:
    """Before any commit (while the first prompts are computed), and mid-stream."""
    async with served() as (service, client):
        first = report_of(service, victim)
        streams = Streams(client, PROMPTS, 50)
        if num_read:
            await eventually(lambda: streams.num_tokens_read >= num_read, timeout_s=60)
        else:
            await status_when(client, lambda status: status.num_tickets > 0)
        service.workers[victim].send_signal(signal.SIGKILL)
        await streams.assert_right()
        second = await service.workers[victim].next_report(first)
        assert isinstance(second, WorkerReady)
        assert second.incarnation != first.incarnation
        await assert_settled(client, *WORKERS)


@pytest.mark.parametrize("victim", WORKERS)
async def test_a_worker_killed_while_a_long_prompt_is_computed(victim: str) -> None:
    """Before the commit for certain: the prompt takes seconds, the kill comes after its first
    chunk. Without its reader the prefill worker goes on, and its KV is redeemed by the next."""
    long = prompt(1, num_tokens=1024)
    async with served("--fake-prefill-us=1000", "--chunk-tokens=64") as (service, client):
        streams = Streams(client, [long], 10)
        await status_when(
            client, lambda status: any(worker.status.step > 1 for worker in status.workers)
        )
        assert streams.num_tokens_read == 0
        service.workers[victim].send_signal(signal.SIGKILL)
        await streams.assert_right()
        status = await client.cluster_status()
        steps = {worker.role: worker.status.step for worker in status.workers}
        assert steps[Role.PREFILL] == 1024 // 64
        await assert_settled(client, *WORKERS)


async def test_the_router_killed_under_load_leaves_nothing_behind() -> None:
    """Clients get an error, workers cancel what it owned and join its successor as they are."""
    async with served() as (service, client):
        before = [report_of(service, name) for name in WORKERS]
        router = service.router.report
        assert router is not None
        streams = Streams(client, PROMPTS[:32], 1000)
        body = {"prompt": PROMPTS[0], "max_tokens": 1000, "stream": True, "ignore_eos": True}
        async with (
            httpx.AsyncClient(base_url=service.address.http_url) as http,
            http.stream("POST", "/v1/completions", json=body) as response,
        ):
            lines = response.aiter_lines()
            assert json.loads((await anext(lines)).removeprefix("data: "))["choices"]
            await eventually(lambda: all(streams.ids), timeout_s=60)
            service.router.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                async for line in lines:
                    assert line != "data: [DONE]"
        failures = await streams.failures()
        assert all(isinstance(failure, ServiceError) for failure in failures), failures
        streams.assert_prefixes()
        await service.router.next_report(router)
        assert [report_of(service, name) for name in WORKERS] == before
        async with AsyncClient(service.address.grpc_target) as later:
            await assert_settled(later, *WORKERS)
            await Streams(later, PROMPTS[:4], 20).assert_right()
            await assert_settled(later, *WORKERS)


@pytest.mark.parametrize("victim", WORKERS)
async def test_a_hung_worker_is_lost_and_comes_back_without_a_repeat(victim: str) -> None:
    """Alone in its pool: the streams wait for it, and what it still sends them is not taken."""
    async with served("--worker-loss-s=0.5") as (service, client):
        incarnation = report_of(service, victim).incarnation
        streams = Streams(client, PROMPTS[:16], 50)
        await eventually(lambda: streams.num_tokens_read >= 16, timeout_s=60)
        service.workers[victim].send_signal(signal.SIGSTOP)
        await status_when(client, lambda status: len(status.workers) == 1)
        service.workers[victim].send_signal(signal.SIGCONT)
        await streams.assert_right()
        await assert_settled(client, *WORKERS)
        assert report_of(service, victim).incarnation == incarnation


@pytest.mark.parametrize("victim", WORKERS)
async def test_streams_of_a_hung_worker_go_on_at_another(victim: str) -> None:
    two = ("--prefill-workers=2", "--decode-workers=2")
    async with served("--worker-loss-s=0.5", *two) as (service, client):
        streams = Streams(client, PROMPTS[:32], 50)
        await eventually(lambda: streams.num_tokens_read >= 32, timeout_s=60)
        service.workers[victim].send_signal(signal.SIGSTOP)
        async with asyncio.timeout(60):
            await streams.assert_right()
        status = await status_when(
            client, lambda status: len(status.workers) == 3 and all(map(is_empty, status.workers))
        )
        assert victim not in {worker.worker_id for worker in status.workers}
        service.workers[victim].send_signal(signal.SIGCONT)
        await assert_settled(client, *WORKERS, "prefill-1", "decode-1")
