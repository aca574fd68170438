"""Requests that end early, in each state: cancelled, past their deadline, or not read at all.

Each test ends with Trio's check: pools full, no leg, no ticket, no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from decode_worker.config import DecodeConfig
from engine.config import EngineConfig
from engine.fake_runner import fake_tokens
from pdserve.errors import DeadlineExceeded, RequestCancelled
from pdserve.types import SamplingParams, WorkerStatus
from router.config import RouterConfig
from support.trio import Trio, TrioOptions, collect, eventually

SAMPLING = SamplingParams(max_tokens=200, ignore_eos=True)
PROMPT = [i % 256 for i in range(60)]
SLOW = EngineConfig(
    engine="fake", block_size=4, chunk_tokens=8, fake_prefill_us=500.0, fake_decode_ms=2.0
)


def status_of(trio: Trio, name: str) -> WorkerStatus:
    return trio.workers[name].app.worker.status()


States = dict[str, Callable[[Trio], bool]]

STATES: States = {
    "queued": lambda trio: True,
    "submitted": lambda trio: status_of(trio, "d0").num_queued > 0,
    "computing": lambda trio: status_of(trio, "p0").step > 1,
    "decoding": lambda trio: status_of(trio, "d0").step > 3,
}


@pytest.mark.parametrize("kv", ["inproc", "grpc"])
@pytest.mark.parametrize("state", list(STATES))
async def test_cancel_in_every_state(state: str, kv: str) -> None:
    async with Trio(TrioOptions(engine=SLOW, kv=kv)) as trio:
        stream = trio.start(PROMPT, SAMPLING)
        await eventually(lambda: STATES[state](trio))
        stream.cancel("the client left")
        with pytest.raises(RequestCancelled):
            await collect(stream)
        await trio.assert_settled()
        again = await trio.generate(PROMPT, replace(SAMPLING, max_tokens=5))
        assert again.ids == fake_tokens(PROMPT, SAMPLING, 5)


async def test_cancel_waiting_in_the_queue_behind_another() -> None:
    options = TrioOptions(engine=SLOW, decode=DecodeConfig(max_running=1))
    async with Trio(options) as trio:
        first = trio.start(PROMPT, replace(SAMPLING, max_tokens=10))
        second = trio.start(PROMPT, SAMPLING)
        await eventually(lambda: trio.router.status().queue_len == 1)
        second.cancel("changed my mind")
        with pytest.raises(RequestCancelled):
            await collect(second)
        assert (await collect(first)).ids == fake_tokens(PROMPT, SAMPLING, 10)


async def test_cancel_of_a_colocated_prompt_and_stream() -> None:
    async with Trio(TrioOptions(engine=SLOW, mode="colocated")) as trio:
        for num_steps in (2, 14):  # in the prompt (8 chunks), then in the stream (10 steps before)
            stream = trio.start(PROMPT, SAMPLING)
            await eventually(lambda n=num_steps: status_of(trio, "d0").step >= n)  # type: ignore[misc]
            stream.cancel("enough")
            with pytest.raises(RequestCancelled):
                await collect(stream)


async def test_cancel_many_while_others_go_on() -> None:
    async with Trio(TrioOptions(engine=SLOW)) as trio:
        samplings = [replace(SAMPLING, max_tokens=30, seed=i) for i in range(16)]
        streams = [trio.start(PROMPT[: 4 + i], sampling) for i, sampling in enumerate(samplings)]
        await eventually(lambda: status_of(trio, "d0").step > 5)
        for stream in streams[::2]:
            stream.cancel("every other one")
        for i, stream in enumerate(streams):
            if i % 2 == 0:
                with pytest.raises(RequestCancelled):
                    await collect(stream)
            else:
                assert (await collect(stream)).ids == fake_tokens(PROMPT[: 4 + i], samplings[i], 30)


@pytest.mark.parametrize("deadline_s", [0.005, 0.06])
async def test_deadline_ends_the_request_everywhere(deadline_s: float) -> None:
    async with Trio(TrioOptions(engine=SLOW)) as trio:
        stream = trio.start(PROMPT, SAMPLING, deadline_s=deadline_s)
        with pytest.raises(DeadlineExceeded):
            await collect(stream)


async def test_reader_that_never_reads_stalls_nobody() -> None:
    async with Trio(TrioOptions()) as trio:
        unread = trio.start(PROMPT, SAMPLING)
        others = await asyncio.gather(*(trio.generate(PROMPT[: 3 + i], SAMPLING) for i in range(8)))
        assert [outcome.ids for outcome in others] == [
            fake_tokens(PROMPT[: 3 + i], SAMPLING, 200) for i in range(8)
        ]
        await eventually(lambda: trio.router.status().num_in_flight == 0)
        assert unread.num_buffered == 200  # bounded by max_tokens, and all of it is there
        assert (await collect(unread)).ids == fake_tokens(PROMPT, SAMPLING, 200)


async def test_router_shutting_down_cancels_what_it_owned() -> None:
    async with Trio(TrioOptions(engine=SLOW, router=RouterConfig())) as trio:
        collecting = asyncio.create_task(collect(trio.start(PROMPT, SAMPLING)))
        await eventually(lambda: status_of(trio, "d0").step > 2)
        await trio.router.drain(0.0)
        with pytest.raises(Exception, match="shutting down"):
            await collecting
