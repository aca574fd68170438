"""A decode worker as a thing that starts and stops: engine loop, KV reader, sessions.

Entering connects to every router; leaving ends every leg and gives everything back. The runner is
the caller's: it is handed in loaded and stays open, so that a process may give it another role.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType

from decode_worker.config import DecodeConfig
from decode_worker.dialers import own_dialers
from decode_worker.worker import DecodeWorker
from engine.block_pool import BlockPool
from engine.build import max_model_len
from engine.step import StepRunner
from kvtransfer.coding import EXACT
from kvtransfer.importer import Importer
from kvtransfer.transports.base import Dialer
from pdserve.clock import Clock
from pdserve.links import WorkerLink
from pdserve.log import event_log
from pdserve.messages import PROTOCOL_VERSION, Hello
from pdserve.otel import open_tracer
from pdserve.prepared import PreparedModel
from pdserve.router_sessions import RouterSessions
from pdserve.rpc.worker_link import dial_router as dial_router_by_grpc
from pdserve.tracing import Tracer
from pdserve.types import Role, WorkerId, WorkerLimits

logger = event_log(__name__)

DialRouter = Callable[[str], Awaitable[WorkerLink]]


class DecodeApp:
    """``async with DecodeApp(...)``: a worker that serves every router of ``config.routers``.

    ``dial_router`` and ``dialers`` (by transport name) default to gRPC and to
    dialers.py's, which may choose ``over_ray`` too.
    """

    def __init__(
        self,
        config: DecodeConfig,
        model: PreparedModel,
        runner: StepRunner,
        clock: Clock,
        *,
        dial_router: DialRouter | None = None,
        dialers: Mapping[str, Dialer] | None = None,
        over_ray: Dialer | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._dial_router = dial_router or dial_router_by_grpc
        self._dialers = dict(dialers) if dialers is not None else None
        self._over_ray = over_ray
        self._runner = runner
        self.hello = _hello(config, model, runner)
        self._tracer = tracer or open_tracer(
            config.tracing, clock, "pdserve-decode", self.hello.worker_id
        )
        self.pool = BlockPool(runner.buffers.num_blocks)

    async def __aenter__(self) -> DecodeApp:
        if self._dialers is None:
            self._dialers = own_dialers(self._config.transfer, self._runner.layout, self._over_ray)
        self._importer = importer = Importer(
            self._runner.buffers, self._clock, self._config.transfer,
            self.hello.worker_id, self.hello.incarnation, self._dialers,
        )  # fmt: skip
        self.worker = DecodeWorker(
            self._config, self.hello, self._runner, self.pool, importer, self._clock, self._tracer
        )
        self.worker.loop.start()
        logger.info(
            "decode_worker_started", worker=self.hello.worker_id, transports=",".join(self._dialers)
        )
        self._routers = RouterSessions(self.worker, self._dial_router, self._clock)
        await self._routers.serve(self._config.routers)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._routers.close()
        await self.worker.close()
        await self._importer.close()
        for dialer in (self._dialers or {}).values():
            await dialer.close()
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
        """Admit nothing more, let streams finish for ``grace_s``, then leave every router."""
        self.worker.begin_drain()
        try:
            async with asyncio.timeout(grace_s):
                await self.worker.drained()
        except TimeoutError:
            logger.warning("drain_grace_over", legs=self.worker.num_legs)
        await self._routers.leave()


def _hello(config: DecodeConfig, model: PreparedModel, runner: StepRunner) -> Hello:
    incarnation = uuid.uuid4().hex
    asked = config.transfer.kv_in_flight
    worker_id = config.worker_id or f"decode-{socket.gethostname()}-{incarnation[:6]}"
    return Hello(
        protocol_version=PROTOCOL_VERSION,
        worker_id=WorkerId(worker_id),
        incarnation=incarnation,
        role=Role.DECODE,
        model_name=config.engine.served_model_name or model.name,
        model_fingerprint=model.fingerprint,
        layout=runner.layout,
        limits=WorkerLimits(
            max_model_len=max_model_len(config.engine, model),
            total_blocks=runner.buffers.num_blocks,
            chunk_tokens=config.engine.chunk_tokens,
            max_running=config.max_running,
            vocab_size=runner.vocab_size,
        ),
        endpoints=(),
        device=runner.device,
        kv_codings=() if asked == EXACT else (asked,),
    )
