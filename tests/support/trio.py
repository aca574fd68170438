"""The whole path in one process: router core, prefill and decode workers, KV over a transport.

    async with Trio.of(TrioOptions(...)) as trio:
        ids = await trio.generate(prompt_ids, sampling)

Leaving checks that nothing is left: pools full, no leg, no ticket, no booking, no flight, no task.
Workers can be killed and added while requests run. KV goes over the in-process transport (whose
messages a test may damage) or over gRPC on loopback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from decode_worker.app import DecodeApp
from decode_worker.config import DecodeConfig
from engine.build import build_runner
from engine.config import EngineConfig
from engine.fake_model import prepare_fake_model
from engine.step import StepRunner
from kvtransfer.config import TransferConfig
from kvtransfer.transports.base import Dialer, Listener
from kvtransfer.transports.grpc import GrpcDialer, GrpcListener
from kvtransfer.transports.inproc import InprocNetwork
from pdserve.clock import MonotonicClock
from pdserve.links import RouterLink, WorkerLink, link_pair
from pdserve.prepared import PreparedModel
from pdserve.request_timing import RequestTiming
from pdserve.types import FinishReason, ModelInfo, Request, RequestId, Role, SamplingParams
from prefill_worker.app import PrefillApp
from prefill_worker.config import PrefillConfig
from router.config import RouterConfig
from router.router import Router
from router.token_stream import TokenStream
from support.damaged_kv import Harm, HarmfulDialer
from support.tasks import none_left

BLOCK_SIZE = 4
CHUNK_TOKENS = 8


@dataclass(frozen=True)
class TrioOptions:
    num_prefill: int = 1
    num_decode: int = 1
    mode: str = "disaggregated"
    kv: str = "inproc"  # or "grpc"
    engine: EngineConfig = field(
        default_factory=lambda: EngineConfig(
            engine="fake",
            block_size=BLOCK_SIZE,
            chunk_tokens=CHUNK_TOKENS,
            fake_prefill_us=0.0,
            fake_decode_ms=0.0,
        )  # fmt: skip
    )
    prefill_engine: EngineConfig | None = None
    decode_engine: EngineConfig | None = None
    router: RouterConfig = field(default_factory=RouterConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    prefill: PrefillConfig = field(default_factory=PrefillConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    model: PreparedModel | None = None
    decode_model: PreparedModel | None = None  # if it is another one
    harm: Harm | None = None  # what happens to KV messages on their way to decode workers
    wrap_runner: Callable[[Role, StepRunner], StepRunner] = lambda role, runner: runner


@dataclass(frozen=True)
class Outcome:
    ids: list[int]
    finish: FinishReason
    timing: RequestTiming


@dataclass
class _Running:
    role: Role
    app: PrefillApp | DecodeApp
    runner: StepRunner
    links: list[RouterLink]
    served: list[asyncio.Task[None]]


class Trio:
    """Use ``async with``. Workers are named p0, p1, … and d0, d1, …"""

    def __init__(self, options: TrioOptions) -> None:
        self.options = options
        self.model = options.model or prepare_fake_model()
        self.network = InprocNetwork()
        self.workers: dict[str, _Running] = {}
        self._clock = MonotonicClock()
        self._num_started = {Role.PREFILL: 0, Role.DECODE: 0}
        self._num_requests = 0
        info = ModelInfo(
            self.model.name, self.model.fingerprint, self.model.config.vocab_size,
            options.engine.max_model_len or self.model.config.max_positions,
            self.model.eos_token_ids,
        )  # fmt: skip
        self.router = Router(replace(options.router, mode=options.mode), info, self._clock)
        self._tasks_before: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> Trio:
        self._tasks_before = asyncio.all_tasks()
        for _ in range(self.options.num_prefill if self.options.mode == "disaggregated" else 0):
            await self.add(Role.PREFILL)
        for _ in range(self.options.num_decode):
            await self.add(Role.DECODE)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                await self.assert_settled()
        finally:
            for name in list(self.workers):
                await self.remove(name)
            await self.router.close()
        if kind is None:
            await none_left(self._tasks_before)

    # --- requests -----------------------------------------------------------------------------

    def start(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        deadline_s: float | None = None,
        cache_salt: str = "",
        follows: TokenStream | None = None,
    ) -> TokenStream:
        self._num_requests += 1
        if deadline_s is not None:
            deadline_s += self._clock.now()
        request = Request(
            RequestId(f"r{self._num_requests}"), tuple(prompt_ids), sampling,
            deadline_s=deadline_s, cache_salt=cache_salt,
        )  # fmt: skip
        return self.router.start(request, follows=follows and follows.request_id)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, *, cache_salt: str = ""
    ) -> Outcome:
        return await collect(self.start(prompt_ids, sampling, cache_salt=cache_salt))

    # --- workers ------------------------------------------------------------------------------

    async def add(self, role: Role, name: str | None = None) -> str:
        """Start one more worker; returns when the router has it."""
        number = self._num_started[role]
        self._num_started[role] += 1
        name = name or f"{'p' if role is Role.PREFILL else 'd'}{number}"
        links: list[RouterLink] = []
        served: list[asyncio.Task[None]] = []

        async def dial(_address: str) -> WorkerLink:
            workers_end, routers_end = link_pair()
            links.append(routers_end)
            served.append(asyncio.create_task(self.router.serve_worker(routers_end)))
            return workers_end

        app, runner = self._make(role, name, dial)
        await app.__aenter__()
        self.workers[name] = _Running(role, app, runner, links, served)
        await eventually(
            lambda: any(entry.worker_id == name for entry in self.router.status().workers)
        )
        return name

    async def remove(self, name: str) -> None:
        """The worker goes at once, without a word to the router but the end of its session."""
        running = self.workers.pop(name)
        for link in running.links:
            await link.close()
        await running.app.__aexit__(None, None, None)
        await running.runner.close()
        await asyncio.gather(*running.served)
        pool = running.app.pool
        assert pool.num_free == pool.num_blocks, f"{name} kept blocks"

    async def restart(self, name: str) -> None:
        """Kill a worker and start one of the same name, as another incarnation."""
        role = self.workers[name].role
        await self.remove(name)
        await self.add(role, name)

    async def assert_settled(self) -> None:
        """Everything that was asked for is given back (waits for what is on its way)."""
        await eventually(self._is_settled, self.describe)

    def describe(self) -> str:
        parts = [f"{name}: {running.app.worker.status()}" for name, running in self.workers.items()]
        return f"{self.router.status()}\n" + "\n".join(parts)

    # --- inside -------------------------------------------------------------------------------

    def _is_settled(self) -> bool:
        status = self.router.status()
        if status.num_in_flight or status.queue_len or status.num_tickets:
            return False
        for entry in status.workers:
            if entry.num_legs:
                return False
        for running in self.workers.values():
            own, pool = running.app.worker.status(), running.app.pool
            if pool.num_free != pool.num_blocks or own.num_exported or own.num_queued:
                return False
            if own.reserved_blocks or own.num_running:
                return False
        return True

    def _make(
        self, role: Role, name: str, dial: Callable[[str], object]
    ) -> tuple[PrefillApp | DecodeApp, StepRunner]:
        options = self.options
        engine = options.engine
        if role is Role.PREFILL:
            engine = options.prefill_engine or engine
            runner = options.wrap_runner(role, build_runner(engine, self.model, self._clock))
            prefill = replace(
                options.prefill, engine=engine, transfer=options.transfer, worker_id=name,
                routers=("r",),
            )  # fmt: skip
            return PrefillApp(
                prefill, self.model, runner, self._clock,
                listeners=[self._listener()], dial_router=dial,  # type: ignore[arg-type]
            ), runner  # fmt: skip
        engine = options.decode_engine or engine
        model = options.decode_model or self.model
        runner = options.wrap_runner(role, build_runner(engine, model, self._clock))
        decode = replace(
            options.decode, engine=engine, worker_id=name,
            transfer=replace(options.transfer, kv_probe_bytes=0),  # harm is counted in messages
            routers=("r",),
        )  # fmt: skip
        return DecodeApp(
            decode, model, runner, self._clock,
            dialers=self._dialers(runner), dial_router=dial,  # type: ignore[arg-type]
        ), runner  # fmt: skip

    def _listener(self) -> Listener:
        return GrpcListener() if self.options.kv == "grpc" else self.network.listener()

    def _dialers(self, runner: StepRunner) -> dict[str, Dialer]:
        if self.options.kv == "grpc":
            limit = self.options.transfer.max_message_bytes(runner.layout)
            return {"grpc": GrpcDialer(limit)}
        dialer: Dialer = self.network.dialer()
        if self.options.harm is not None:
            dialer = HarmfulDialer(dialer, self.options.harm)
        return {"inproc": dialer}


async def eventually(
    condition: Callable[[], bool], describe: Callable[[], str] = str, timeout_s: float = 10.0
) -> None:
    """Let the loop turn until ``condition()`` holds."""
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - state of several parts, no one event for it
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"never came true: {describe()}") from None


async def collect(stream: TokenStream) -> Outcome:
    """All tokens of a stream, checked: indices without gap, one terminal, and it is the last."""
    ids: list[int] = []
    finish: FinishReason | None = None
    async for token in stream:
        assert finish is None, "a token after the terminal one"
        assert token.index == len(ids), f"index {token.index} after {len(ids)} tokens"
        ids.append(token.token_id)
        finish = token.finish_reason
    assert finish is not None, "no terminal token"
    return Outcome(ids, finish, stream.timing)
