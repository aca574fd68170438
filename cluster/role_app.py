"""One role entered in the process at hand, whatever the host: a command's process or a Ray actor.

The engine is built here and handed to the role: the stack owns it, the role borrows it. Knows
neither signals nor who asked for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from cluster.ready import RouterReady, WorkerReady
from engine.build import build_runner, prepare
from engine.config import EngineConfig
from engine.step import StepRunner
from pdserve.clock import Clock
from pdserve.collector import settle
from pdserve.cores import parse_cores
from pdserve.prepared import PreparedModel

if TYPE_CHECKING:
    from decode_worker.app import DecodeApp
    from decode_worker.config import DecodeConfig
    from kvtransfer.transports.base import Dialer, Listener
    from prefill_worker.app import PrefillApp
    from prefill_worker.config import PrefillConfig
    from router.app import RouterApp
    from router.config import RouterConfig

Progress = Callable[[str], None]


async def enter_router(
    stack: AsyncExitStack, config: RouterConfig, clock: Clock, progress: Progress
) -> tuple[RouterApp, RouterReady]:
    """Raises ConfigError or ModelFileError as the parts do."""
    from router.app import RouterApp

    engine = EngineConfig(
        model=config.model, dtype=config.dtype, weights=config.weights, engine=config.engine
    )
    model = prepare(engine, progress=progress)
    app = await stack.enter_async_context(RouterApp(config, model, clock))
    ready = RouterReady(
        pid=os.getpid(),
        host=config.listen,
        http_port=app.http_port,
        grpc_port=app.grpc_port,
        worker_port=app.worker_port,
        model_name=config.served_model_name or model.name,
    )
    settle()
    return app, ready


async def enter_prefill(
    stack: AsyncExitStack,
    config: PrefillConfig,
    clock: Clock,
    progress: Progress,
    over_ray: Listener | None = None,
) -> tuple[PrefillApp, WorkerReady]:
    """``over_ray``: one more way to its KV. Raises ConfigError or ModelFileError."""
    from prefill_worker.app import PrefillApp

    model, runner = _open_engine(stack, config.engine, clock, progress, config.nice)
    app = await stack.enter_async_context(
        PrefillApp(config, model, runner, clock, over_ray=over_ray)
    )
    settle()
    return app, WorkerReady.of(app.hello, os.getpid())


async def enter_decode(
    stack: AsyncExitStack,
    config: DecodeConfig,
    clock: Clock,
    progress: Progress,
    over_ray: Dialer | None = None,
) -> tuple[DecodeApp, WorkerReady]:
    """``over_ray``: one more way to KV. Raises ConfigError or ModelFileError."""
    from decode_worker.app import DecodeApp

    model, runner = _open_engine(stack, config.engine, clock, progress)
    app = await stack.enter_async_context(
        DecodeApp(config, model, runner, clock, over_ray=over_ray)
    )
    settle()
    return app, WorkerReady.of(app.hello, os.getpid())


def _open_engine(
    stack: AsyncExitStack, config: EngineConfig, clock: Clock, progress: Progress, nice: int = 0
) -> tuple[PreparedModel, StepRunner]:
    """The stack closes the runner. This thread and those it starts from now on keep to the
    engine's cores: whatever a worker does beside its steps must not disturb another's."""
    model = prepare(config, progress=progress)
    runner = build_runner(config, model, clock, nice=nice)
    if cores := parse_cores(config.cpus):
        os.sched_setaffinity(0, cores)
    stack.push_async_callback(runner.close)
    return model, runner
