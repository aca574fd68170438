"""A prefill worker as a whole: engine loop, KV listeners, and a session with every router.

    async with PrefillApp(config, model, runner, clock) as app:
        await app.wait_refused()

Does not know how it is started (process, thread of a launcher, test) nor which signals stop it.
The runner is the caller's: closed by it, after the app.
"""

from __future__ import annotations

import asyncio
import platform
import secrets
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

from engine.block_pool import BlockLease, BlockPool
from engine.build import check_engine_config, max_model_len
from engine.step import StepRunner
from kvtransfer.coding import CODINGS
from kvtransfer.exporter import Exporter
from kvtransfer.transports.base import Listener
from pdserve.clock import Clock
from pdserve.links import WorkerLink
from pdserve.log import event_log
from pdserve.messages import PROTOCOL_VERSION, Hello
from pdserve.otel import open_tracer
from pdserve.prepared import PreparedModel
from pdserve.router_sessions import RouterSessions
from pdserve.tracing import Tracer
from pdserve.types import Endpoint, Role, WorkerId, WorkerLimits
from prefill_worker.config import PrefillConfig
from prefill_worker.listeners import own_listeners
from prefill_worker.worker import PrefillWorker

DialRouter = Callable[[str], Awaitable[WorkerLink]]

_log = event_log(__name__)


class PrefillApp:
    """Async context manager. ``listeners`` default to listeners.py's, ``dial_router`` to gRPC.

    ``over_ray``: one more for listeners.py to choose from.
    """

    def __init__(
        self,
        config: PrefillConfig,
        model: PreparedModel,
        runner: StepRunner,
        clock: Clock,
        *,
        listeners: Sequence[Listener] | None = None,
        over_ray: Listener | None = None,
        dial_router: DialRouter | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        check_engine_config(config.engine)
        self.pool = BlockPool(runner.buffers.num_blocks)
        self._config = config
        self._model = model
        self._runner = runner
        self._clock = clock
        self._exporter = Exporter(runner.buffers, clock, config.transfer, self._spare_blocks)
        if listeners is None:
            listeners = own_listeners(config, runner.buffers, over_ray)
        self._listeners = list(listeners)
        self._dial_router = _dial_by_grpc if dial_router is None else dial_router
        self._started: list[Listener] = []
        self._tracer = tracer or open_tracer(
            config.tracing, clock, "pdserve-prefill", config.worker_id
        )
        self._worker: PrefillWorker | None = None

    @property
    def worker(self) -> PrefillWorker:
        """The room itself; there once the app was entered."""
        assert self._worker is not None, "not entered"
        return self._worker

    @property
    def hello(self) -> Hello:
        return self.worker.hello

    async def __aenter__(self) -> PrefillApp:
        try:
            endpoints = []
            for listener in self._listeners:
                endpoints.append(await listener.start(self._exporter.serve))
                self._started.append(listener)
        except BaseException:
            await self._close_listeners()
            raise
        hello = self._make_hello(tuple(endpoints))
        self._worker = PrefillWorker(
            self._config, hello, self._runner, self.pool, self._exporter, self._clock, self._tracer
        )
        self._worker.loop.start()
        self._routers = RouterSessions(self._worker, self._dial_router, self._clock)
        await self._routers.serve(self._config.routers)
        told = ",".join(f"{each.transport}:{each.address}" for each in hello.endpoints)
        _log.info("prefill_worker_started", worker=hello.worker_id, endpoints=told)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._routers.close()
        await self.worker.close()
        await self._exporter.close()
        await self._close_listeners()
        await self._tracer.close()

    async def wait_refused(self) -> None:
        """Return when every session ended for good (after a drain).

        Raises:
            IncompatibleWorker: a router refused this worker.
            Exception: the engine loop broke.
        """
        await self._routers.ended_or(self.worker.loop.ended())

    async def serve_routers(self, routers: Sequence[str]) -> None:
        """Serve exactly these from now on, by their worker ports."""
        await self._routers.serve(routers)

    async def drain(self, grace_s: float) -> None:
        """Admit nothing more, let the legs end for up to ``grace_s``, then leave every router."""
        self.worker.begin_drain()
        try:
            async with asyncio.timeout(grace_s):
                await self.worker.drained()
        except TimeoutError:
            _log.warning("drain_cut_short", worker=self.hello.worker_id, grace_s=grace_s)
        await self._routers.leave()

    def _make_hello(self, endpoints: tuple[Endpoint, ...]) -> Hello:
        engine = self._config.engine
        worker_id = self._config.worker_id or f"prefill-{platform.node()}-{secrets.token_hex(2)}"
        limits = WorkerLimits(
            max_model_len=max_model_len(engine, self._model),
            total_blocks=self.pool.num_blocks,
            chunk_tokens=engine.chunk_tokens,
            max_running=self.pool.num_blocks,  # prompts are bounded by their blocks alone
            vocab_size=self._runner.vocab_size,
        )
        return Hello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=WorkerId(worker_id),
            incarnation=secrets.token_hex(8),
            role=Role.PREFILL,
            model_name=engine.served_model_name or self._model.name,
            model_fingerprint=self._model.fingerprint,
            layout=self._runner.layout,
            limits=limits,
            endpoints=endpoints,
            device=self._runner.device,
            # The fake engine's values are marks that it checks bit by bit, no numbers.
            kv_codings=() if engine.engine == "fake" else CODINGS,
        )

    def _spare_blocks(self, num_blocks: int) -> BlockLease | None:
        """For a measurement: no prompt's KV is given up for it, and half of what is free stays."""
        return self.pool.lease(num_blocks) if num_blocks <= self.pool.num_blank // 2 else None

    async def _close_listeners(self) -> None:
        for listener in reversed(self._started):
            await listener.close()
        self._started.clear()


async def _dial_by_grpc(address: str) -> WorkerLink:
    from pdserve.rpc.worker_link import dial_router

    return await dial_router(address)
