"""``pdserve router``, ``pdserve prefill``, ``pdserve decode``: one role in this process.

options -> model -> engine -> app entered -> ready line -> signals -> drain -> app left
"""

from __future__ import annotations

import asyncio
import platform
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import uvloop

from cluster.catalogue import check_file, known_variables
from cluster.ready import WorkerReady, encode_ready
from cluster.role_app import enter_decode, enter_prefill, enter_router
from kvtransfer.transports.addresses import split_address
from pdserve.app import (
    ProcessConfig,
    end_with_parent,
    say_ready,
    serve_until_stopped,
    stop_signals,
)
from pdserve.clock import MonotonicClock
from pdserve.config import unknown_variables
from pdserve.errors import ConfigError
from pdserve.log import event_log, setup_logging
from pdserve.role_options import RoleOptions, read_role, role_parser

_FAREWELL_S = 3.0  # after a drain, for the last messages to leave

logger = event_log(__name__)

ConfigT = TypeVar("ConfigT")


class WorkerApp(Protocol):
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
    _check_routers(config.routers)
    _begin(options, config.worker_id)
    return _run(_serve_prefill(config, options.process))


def run_decode(argv: Sequence[str]) -> int:
    from decode_worker.config import DecodeConfig

    about = "Takes KV caches in and gives tokens out; in colocated mode prompts too."
    options = _read("decode", about, DecodeConfig, argv)
    config = options.config
    config = replace(config, worker_id=config.worker_id or _made_up_id("decode"))
    _check_routers(config.routers)
    _begin(options, config.worker_id)
    return _run(_serve_decode(config, options.process))


def _check_routers(routers: Sequence[str]) -> None:
    """Raises ConfigError: none, or one that is no address and would be dialled for ever."""
    if not routers:
        raise ConfigError("routers: a worker needs one at least, --router host:port")
    for router in routers:
        try:
            split_address(router)
        except ConfigError:
            raise ConfigError(f"routers: must be host:port, not {router!r}") from None


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
    async with AsyncExitStack() as stack:
        app, ready = await enter_router(stack, config, MonotonicClock(), _tell_progress)
        signals = stack.enter_context(stop_signals())
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
    async with AsyncExitStack() as stack:
        app, ready = await enter_prefill(stack, config, MonotonicClock(), _tell_progress)
        await _serve_worker(app, ready, process)


async def _serve_decode(config: Any, process: ProcessConfig) -> None:
    async with AsyncExitStack() as stack:
        app, ready = await enter_decode(stack, config, MonotonicClock(), _tell_progress)
        await _serve_worker(app, ready, process)


async def _serve_worker(app: WorkerApp, ready: WorkerReady, process: ProcessConfig) -> None:
    """Until a stop, or until no router is left to serve (an error if one refused this worker)."""
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
