"""The router as a thing that starts and stops: core, text, HTTP, gRPC, and the workers' port.

    clients -- http_port, grpc_port --> faces -> TextService -> Router <- worker_port -- workers

Entering binds the three ports; leaving cancels what still runs and closes everything. Health
(gRPC) and /ready follow whether the pools it needs can serve. Knows no signals and starts no
workers.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from pdserve.clock import Clock
from pdserve.links import RouterLink
from pdserve.metrics import ServiceMetrics, WorkerRow
from pdserve.otel import open_tracer
from pdserve.prepared import PreparedModel
from pdserve.rpc.inference_server import InferenceServer
from pdserve.rpc.server import GrpcServer
from pdserve.rpc.worker_service import WorkerServiceServer
from pdserve.tracing import Tracer
from pdserve.types import ModelInfo
from router.config import RouterConfig
from router.grpc_backend import TextBackend
from router.http.app import build_http_app
from router.http.config import HttpConfig
from router.http.server import HttpServer, serve_http
from router.http.status import ServiceStatus
from router.recent_requests import RecentRequests
from router.router import Router
from router.text_generation import TextService
from router.tokenizer import TextModel


class RouterApp:
    """``async with RouterApp(config, model, clock)``.

    Raises on entering:
        ConfigError: a port cannot be bound, or spans cannot be sent (raised when made).
        ModelFileError: the model has no usable tokenizer.
    """

    def __init__(
        self,
        config: RouterConfig,
        model: PreparedModel,
        clock: Clock,
        *,
        tracer: Tracer | None = None,
    ) -> None:
        self._config = config
        self.model = ModelInfo(
            name=config.served_model_name or model.name,
            fingerprint=model.fingerprint,
            vocab_size=model.config.vocab_size,
            max_model_len=model.config.max_positions,
            eos_token_ids=model.eos_token_ids,
        )
        config.check_ports()
        self.router = Router(config, self.model, clock)
        metrics = ServiceMetrics()
        recent = RecentRequests(config.trace_requests)
        self._tracer = tracer or open_tracer(config.tracing, clock, "pdserve-router")
        text = TextService(
            self.router, TextModel.load(model),
            metrics=metrics, clock=clock, recent=recent, tracer=self._tracer,
        )  # fmt: skip
        self._http_config = HttpConfig(
            max_body_bytes=config.max_body_bytes,
            stalled_write_s=config.stalled_write_s,
            cors_origins=config.cors_origins,
        )
        self._http_app = build_http_app(
            text, self._service_status, metrics, self._http_config, clock=clock
        )
        self._public = GrpcServer(
            f"{config.listen}:{config.grpc_port}",
            [
                InferenceServer(
                    TextBackend(text, self.router.status, recent, self.router.explain),
                    stalled_write_s=config.stalled_write_s,
                    clock=clock,
                )
            ],
            max_message_bytes=config.max_body_bytes,
        )
        self._workers = GrpcServer(
            f"{config.listen}:{config.worker_port}",
            [
                WorkerServiceServer(
                    self.router.serve_worker, clock, local=config.worker_sessions == "auto"
                )
            ],
        )
        self._http: HttpServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def http_port(self) -> int:
        assert self._http is not None, "not entered"
        return self._http.port

    @property
    def grpc_port(self) -> int:
        return self._public.port

    @property
    def worker_port(self) -> int:
        return self._workers.port

    async def __aenter__(self) -> RouterApp:
        config = self._config
        try:
            await self._workers.start()
            await self._public.start()
            self._http = await serve_http(
                self._http_app, config.listen, config.http_port, self._http_config
            )
        except BaseException:
            await self._close()
            raise
        self._tasks.add(asyncio.create_task(self._tell_health(), name="health"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    def accept(self, link: RouterLink) -> None:
        """Serve a worker of this process; its session ends with its link."""
        session = asyncio.create_task(self.router.serve_worker(link), name="inproc worker")
        self._tasks.add(session)
        session.add_done_callback(self._tasks.discard)

    async def drain(self, grace_s: float) -> None:
        """Refuse what comes, let what runs finish for up to ``grace_s``, then cancel it."""
        await self.router.drain(grace_s)

    async def _close(self) -> None:
        await self.router.close()
        if self._http is not None:
            await self._http.close()
        await self._public.stop()
        await self._workers.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._tracer.close()

    async def _tell_health(self) -> None:
        """Keep the answer of gRPC health checks equal to /ready."""
        while True:
            self.router.serving_changed.clear()
            serving = self.router.status().can_serve()
            await self._public.set_serving(serving)
            await self.router.serving_changed.wait()

    def _service_status(self) -> ServiceStatus:
        status = self.router.status()
        return ServiceStatus(
            ready=status.can_serve(),
            problem=status.problem(),
            num_queued=status.queue_len,
            workers=tuple(
                WorkerRow(worker.worker_id, worker.role, worker.status) for worker in status.workers
            ),
            kv_pairs=status.kv_pairs,
        )
