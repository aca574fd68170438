"""A router that stops: who is let go, who is sent away, and that none of it is news to warn of."""

from __future__ import annotations

import asyncio
import logging

import pytest

from pdserve.errors import ShuttingDown
from pdserve.types import FinishReason, Role
from support.router_bench import RouterBench
from support.scripted_worker import ScriptedWorker, make_hello, settle


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[tuple[int, str]]:
    """Level and text of every line of one event."""
    return [
        (record.levelno, record.getMessage())
        for record in caplog.records
        if record.getMessage().startswith(event + " ")
    ]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="router")


async def dial(bench: RouterBench) -> tuple[ScriptedWorker, asyncio.Task[None]]:
    """A worker whose link the router has, before its Hello."""
    worker = ScriptedWorker.connect(make_hello("P1", Role.PREFILL))
    serving = asyncio.create_task(bench.router.serve_worker(worker.far_end))
    await settle()
    return worker, serving


@pytest.mark.parametrize("drained", [False, True], ids=["closed", "drained and closed"])
async def test_sessions_that_the_router_closes_are_no_warning(
    caplog: pytest.LogCaptureFixture, drained: bool
) -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        await bench.dispatched(prefill, decode)
        if drained:
            await bench.router.drain(0.0)
        await bench.router.close()
        assert isinstance(reader.error, ShuttingDown)
    assert [
        (level, text.rpartition("error=")[2]) for level, text in lines(caplog, "worker_lost")
    ] == [(logging.INFO, '"the router stops"')] * 2
    assert warnings(caplog) == []


async def test_workers_that_dial_a_stopped_router_are_sent_away_without_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with RouterBench() as bench:
        await bench.router.close()
        worker = await bench.connect("P1", Role.PREFILL)
        assert isinstance(worker.refused, ShuttingDown)
        assert bench.router.status().workers == ()
    ((level, text),) = lines(caplog, "worker_refused")
    assert level == logging.INFO
    assert text.endswith('error="the router stops"')
    assert warnings(caplog) == []


@pytest.mark.parametrize("num_turns", range(12))
async def test_a_worker_that_says_hello_while_the_router_closes_keeps_it_from_nothing(
    num_turns: int,
) -> None:
    async with RouterBench() as bench:
        worker, serving = await dial(bench)
        await worker.link.send(worker.hello)
        for _ in range(num_turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await bench.router.close()
        assert serving.done()
        assert bench.router.status().workers == ()
        await worker.close()
        assert worker.refused is not None


async def test_only_an_end_by_ones_own_will_is_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        await prefill.goodbye()
        await decode.die()
    assert [
        (level, "worker=P1" in text, "left: drained" in text)
        for level, text in lines(caplog, "worker_lost")
    ] == [(logging.INFO, True, True), (logging.WARNING, False, False)]


async def test_workers_are_kept_while_a_drained_router_lets_streams_finish() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        _, to_decode = await bench.committed(prefill, decode)
        draining = asyncio.create_task(bench.router.drain(30.0))
        await settle()
        late = await bench.join("D2", Role.DECODE)
        assert [worker.worker_id for worker in bench.router.status().workers] == ["P1", "D1", "D2"]
        await decode.tokens(to_decode, 1, [11, 12, 13], FinishReason.LENGTH)
        await draining
        assert reader.token_ids == [10, 11, 12, 13]
        assert late.inbox == []
        await bench.router.close()
        assert [worker.refused is not None for worker in (prefill, decode, late)] == [True] * 3
