"""The prefill worker as a whole, with the test as its router over in-process links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from engine.build import build_runner
from engine.config import EngineConfig
from engine.fake_model import prepare_fake_model
from engine.fake_runner import fake_tokens
from pdserve.clock import MonotonicClock
from pdserve.errors import ConfigError, IncompatibleWorker
from pdserve.links import QueueLink, link_pair
from pdserve.messages import (
    Admitted,
    Ended,
    FirstToken,
    FromWorker,
    Goodbye,
    Hello,
    StepReport,
    Submit,
    ToWorker,
    Welcome,
    WorkerEvent,
)
from pdserve.types import Leg, Role, SamplingParams
from prefill_worker.app import PrefillApp
from prefill_worker.config import PrefillConfig
from support.fake_engine import make_attempt

RouterEnd = QueueLink[ToWorker, FromWorker]
ENGINE = EngineConfig(
    engine="fake", block_size=8, chunk_tokens=16, kv_memory_mib=1.0, fake_prefill_us=0.0
)
PROMPT = list(range(40, 75))


class Router:
    """Takes what dials in; the test talks through ``link``."""

    def __init__(self) -> None:
        self.links: asyncio.Queue[RouterEnd] = asyncio.Queue()
        self.refusal: IncompatibleWorker | None = None

    async def dial(self, address: str) -> QueueLink[FromWorker, ToWorker]:
        if self.refusal is not None:
            raise self.refusal
        worker, router = link_pair()
        self.links.put_nowait(router)
        return worker

    async def greet(self) -> tuple[RouterEnd, Hello]:
        async with asyncio.timeout(20):
            link = await self.links.get()
            hello = await link.receive()
        assert isinstance(hello, Hello)
        await link.send(Welcome("router", 1.0))
        return link, hello


async def events_until(link: RouterEnd, kind: type[WorkerEvent]) -> list[WorkerEvent]:
    """Events up to and with the report that holds one of ``kind``."""
    events: list[WorkerEvent] = []
    async with asyncio.timeout(20):
        while not any(isinstance(event, kind) for event in events):
            message = await link.receive()
            assert isinstance(message, StepReport)
            events.extend(message.events)
    return events


@asynccontextmanager
async def running_app(
    router: Router, tmp_path: Path, engine: EngineConfig = ENGINE
) -> AsyncIterator[PrefillApp]:
    num_tasks = len(asyncio.all_tasks())
    model = prepare_fake_model(tmp_path)
    clock = MonotonicClock()
    runner = build_runner(engine, model, clock)
    config = PrefillConfig(engine=engine, worker_id="p7", routers=("a:1",))
    app = PrefillApp(config, model, runner, clock, listeners=[], dial_router=router.dial)
    async with app:
        yield app
    await runner.close()
    assert app.pool.num_free == app.pool.num_blocks
    assert len(asyncio.all_tasks()) == num_tasks


async def test_a_prompt_from_hello_to_ended(tmp_path: Path) -> None:
    router = Router()
    async with running_app(router, tmp_path) as app:
        link, hello = await router.greet()
        assert hello == app.hello
        assert (hello.role, hello.worker_id, hello.model_name) == (Role.PREFILL, "p7", "fake")
        assert hello.limits.max_model_len == 8192
        assert hello.limits.total_blocks == app.pool.num_blocks
        attempt = make_attempt(PROMPT, sampling=SamplingParams(max_tokens=1))
        await link.send(Submit(1, Leg.PREFILL, attempt, None))
        events = await events_until(link, Ended)
        assert [type(event) for event in events] == [Admitted, FirstToken, Ended]
        first = events[1]
        assert isinstance(first, FirstToken)
        assert [first.token.token_id] == fake_tokens(PROMPT, attempt.request.sampling)


@pytest.mark.parametrize(("kind", "codings"), [("fake", ()), ("simulated", ("int8", "fp8"))])
async def test_marks_are_never_offered_in_eight_bits(
    kind: Literal["fake", "simulated"], codings: tuple[str, ...], tmp_path: Path
) -> None:
    router = Router()
    async with running_app(router, tmp_path, replace(ENGINE, engine=kind)):
        _, hello = await router.greet()
        assert hello.kv_codings == codings


async def test_it_comes_back_to_a_router_that_hung_up(tmp_path: Path) -> None:
    router = Router()
    async with running_app(router, tmp_path):
        link, hello = await router.greet()
        await link.close()
        _, again = await router.greet()
        assert again == hello  # the same incarnation


async def test_drain_says_goodbye(tmp_path: Path) -> None:
    router = Router()
    async with running_app(router, tmp_path) as app:
        link, _ = await router.greet()
        ended = asyncio.create_task(app.wait_refused())
        await app.drain(grace_s=5.0)
        async with asyncio.timeout(20):
            while not isinstance(await link.receive(), Goodbye):
                pass
            await ended


async def test_a_refusal_is_raised(tmp_path: Path) -> None:
    router = Router()
    router.refusal = IncompatibleWorker("model_fingerprint differs")
    async with running_app(router, tmp_path) as app:
        with pytest.raises(IncompatibleWorker, match="model_fingerprint"):
            await app.wait_refused()


async def test_a_broken_engine_loop_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = Router()
    async with running_app(router, tmp_path) as app:
        await router.greet()

        def plan() -> None:
            raise LookupError("planner fault")

        monkeypatch.setattr(app.worker, "plan", plan)
        app.worker.loop.wake()
        with pytest.raises(LookupError):
            await app.wait_refused()


async def test_contradicting_options_are_refused(tmp_path: Path) -> None:
    model = prepare_fake_model(tmp_path)
    runner = build_runner(ENGINE, model, MonotonicClock())
    config = PrefillConfig(engine=replace(ENGINE, chunk_tokens=20))
    with pytest.raises(ConfigError, match="chunk_tokens"):
        PrefillApp(config, model, runner, MonotonicClock(), listeners=[])
