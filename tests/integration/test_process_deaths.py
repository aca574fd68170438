"""SIGKILL and SIGSTOP of real processes under sixty-four streams, KV over gRPC, fake engine.

Every stream must end with the tokens that the plain oracle gives, and every block must be back.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from cluster.ready import WorkerReady
from engine.fake_runner import fake_tokens
from pdserve.types import SamplingParams
from router.client import AsyncClient
from support.local_service import local_service
from support.trio import eventually

NUM_STREAMS = 64
NUM_TOKENS = 50
STEPS = ("--fake-decode-ms=10", "--fake-prefill-us=100")


def prompt(number: int) -> list[int]:
    return [(number * 13 + i * 7) % 250 for i in range(20 + number)]


def oracle(number: int) -> list[int]:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    return fake_tokens(prompt(number), sampling, NUM_TOKENS)


async def read(client: AsyncClient, number: int, into: list[int]) -> list[int]:
    call = client.generate(
        prompt_ids=prompt(number), max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True
    )
    async for delta in call:
        into.extend(delta.token_ids)
    return into


async def all_blocks_back(client: AsyncClient) -> None:
    for _ in range(100):
        status = await client.cluster_status()
        workers = [worker.status for worker in status.workers]
        if len(workers) == 2 and all(w.free_blocks == w.total_blocks for w in workers):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"blocks are missing: {status}")


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
@pytest.mark.parametrize("when", ["prompts", "streams"])
async def test_a_worker_killed_under_load_loses_no_stream(victim: str, when: str) -> None:
    async with (
        local_service(*STEPS) as (service, _),
        AsyncClient(service.address.grpc_target) as client,
    ):
        got: list[list[int]] = [[] for _ in range(NUM_STREAMS)]
        reading = [
            asyncio.create_task(read(client, number, got[number])) for number in range(NUM_STREAMS)
        ]
        enough = 1 if when == "prompts" else NUM_STREAMS * 5
        await eventually(lambda: sum(map(len, got)) >= enough, timeout_s=60)
        worker = service.workers[victim]
        first = worker.report
        assert isinstance(first, WorkerReady)
        worker.send_signal(signal.SIGKILL)
        for number, ids in enumerate(await asyncio.gather(*reading)):
            assert ids == oracle(number)
        second = await worker.next_report(first)
        assert isinstance(second, WorkerReady) and second.incarnation != first.incarnation
        await all_blocks_back(client)


async def test_a_hung_worker_is_lost_and_comes_back_without_a_repeat() -> None:
    async with (
        local_service(*STEPS, "--worker-loss-s=1") as (service, _),
        AsyncClient(service.address.grpc_target) as client,
    ):
        got: list[list[int]] = [[] for _ in range(8)]
        reading = [asyncio.create_task(read(client, number, got[number])) for number in range(8)]
        await eventually(lambda: sum(map(len, got)) >= 40, timeout_s=60)
        decode = service.workers["decode-0"]
        decode.send_signal(signal.SIGSTOP)
        while len((await client.cluster_status()).workers) == 2:  # noqa: ASYNC110 - remote
            await asyncio.sleep(0.1)
        decode.send_signal(signal.SIGCONT)
        for number, ids in enumerate(await asyncio.gather(*reading)):
            assert ids == oracle(number)
        await all_blocks_back(client)
