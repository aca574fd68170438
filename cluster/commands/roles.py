"""``pdserve router``, ``pdserve prefill``, ``pdserve decode``: one role in this process.

    options -> model -> engine -> app entered -> ready line -> signals -> drain -> app left

The engine is built here and handed to the role: the process owns it, the role borrows it.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import uvloop

from cluster.catalogue import check_file, known_variables
from cluster.ready import RouterReady, WorkerReady, encode_ready
from engine.build import build_runner, prepare
from engine.config import EngineConfig
from pdserve.app import (
    ProcessConfig,
    end_with_parent,
    say_ready,
    serve_until_stopped,
    stop_signals,
)
from pdserve.clock import MonotonicClock
from pdserve.config import unknown_variables
from pdserve.log import event_log, setup_logging
from pdserve.messages import Hello
from pdserve.role_options import RoleOptions, read_role, role_parser

_FAREWELL_S = 3.0  # after a drain, for the last messages to leave

logger = event_log(__name__)

ConfigT = TypeVar("ConfigT")


class WorkerApp(Protocol):
    @property
    def hello(self) -> Hello: ...

    async def drain(self, grace_s: float) -> None: ...

    async def wait_refused(self) -> None: ...


def run_router(argv: Sequence[str]) -> int:
    from router.config import RouterConfig

    about = "Text and clients outside, token ids and workers inside."
    options = _read("router", about, RouterConfig, argv)
    _begin(options, worker="")
    return _run(_serve_router(options.config, options.process))


def run_prefill(argv: Sequence[str]) -> int:
    from prefill_worker.config import PrefillConfig

    about = "Computes prompts: first token and KV cache out."
    options = _read("prefill", about, PrefillConfig, argv)
    config = options.config
    config = replace(config, worker_id=config.worker_id or _made_up_id("prefill"))
    _begin(options, config.worker_id)
    return _run(_serve_prefill(config, options.process))


def run_decode(argv: Sequence[str]) -> int:
    from decode_worker.config import DecodeConfig

    about = "Takes KV caches in and gives tokens out; in colocated mode prompts too."
    options = _read("decode", about, DecodeConfig, argv)
    config = options.config
    config = replace(config, worker_id=config.worker_id or _made_up_id("decode"))
    _begin(options, config.worker_id)
    return _run(_serve_decode(config, options.process))


def _made_up_id(role: str) -> str:
    """Another one at every start: two unnamed workers of one host must not replace each other."""
    return f"{role}-{platform.node()}-{secrets.token_hex(3)}"


def _read(role: str, about: str, cls: type[ConfigT], argv: Sequence[str]) -> RoleOptions[ConfigT]:
    sources = role_parser(f"pdserve {role}", about, role, cls).parse(argv)
    check_file(sources)
    return read_role(role, cls, sources)


def _begin(options: RoleOptions[Any], worker: str) -> None:
    setup_logging(options.log, worker)
    for name, meant in unknown_variables(known_variables()).items():
        logger.warning("unknown_variable", name=name, nearest=meant)
    end_with_parent(options.process)


def _run(main: Coroutine[Any, Any, None]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
    return 0


def _tell_progress(line: str) -> None:
    logger.info("preparing", text=line)


async def _serve_router(config: Any, process: ProcessConfig) -> None:
    from router.app import RouterApp

    engine = EngineConfig(model=config.model, dtype=config.dtype, engine=config.engine)
    model = prepare(engine, progress=_tell_progress)
    with stop_signals() as signals:
        async with RouterApp(config, model, MonotonicClock()) as app:
            ready = RouterReady(
                pid=os.getpid(),
                host=config.listen,
                http_port=app.http_port,
                grpc_port=app.grpc_port,
                worker_port=app.worker_port,
                model_name=config.served_model_name or model.name,
            )
            logger.info(
                "router_ready",
                listen=config.listen,
                http_port=app.http_port,
                grpc_port=app.grpc_port,
                worker_port=app.worker_port,
            )
            say_ready(process, encode_ready(ready))
            await serve_until_stopped(app, signals, process.drain_grace_s)


async def _serve_prefill(config: Any, process: ProcessConfig) -> None:
    from prefill_worker.app import PrefillApp

    clock = MonotonicClock()
    model = prepare(config.engine, progress=_tell_progress)
    runner = build_runner(config.engine, model, clock)
    try:
        async with PrefillApp(config, model, runner, clock) as app:
            await _serve_worker(app, process)
    finally:
        await runner.close()


async def _serve_decode(config: Any, process: ProcessConfig) -> None:
    from decode_worker.app import DecodeApp

    clock = MonotonicClock()
    model = prepare(config.engine, progress=_tell_progress)
    runner = build_runner(config.engine, model, clock)
    try:
        async with DecodeApp(config, model, runner, clock) as app:
            await _serve_worker(app, process)
    finally:
        await runner.close()


async def _serve_worker(app: WorkerApp, process: ProcessConfig) -> None:
    """Until a stop, or until no router is left to serve (an error if one refused this worker)."""
    ready = WorkerReady.of(app.hello, os.getpid())
    logger.info(
        "worker_ready", worker=ready.worker_id, device=ready.device, blocks=ready.num_blocks
    )
    say_ready(process, encode_ready(ready))
    with stop_signals() as signals:
        ended = asyncio.create_task(app.wait_refused())
        stopped = asyncio.create_task(serve_until_stopped(app, signals, process.drain_grace_s))
        try:
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                stopped.result()
                await asyncio.wait({ended}, timeout=_FAREWELL_S)
            if ended.done():
                ended.result()
        finally:
            for task in (ended, stopped):
                task.cancel()
            await asyncio.gather(ended, stopped, return_exceptions=True)
