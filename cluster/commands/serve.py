"""``pdserve serve``: a whole service on this host, until it is told to stop.

options -> plan -> model prepared once -> launcher -> up -> first signal: drain -> second: now
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from cluster.host import inspect_host
from cluster.plan import ServicePlan, read_plan, service_parser
from cluster.ready import WorkerReady
from cluster.service import ServiceAddress, check_ready_file, write_ready_file
from cluster.spec import ClusterSpec
from engine.build import prepare
from engine.config import EngineConfig
from pdserve.app import StopSignals, end_with_parent, stop_signals, unless
from pdserve.clock import MonotonicClock
from pdserve.log import LogConfig, line_of, setup_logging
from pdserve.types import Role


class Launcher(Protocol):
    """What starts and stops the parts of a service."""

    @property
    def address(self) -> ServiceAddress: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def kill(self) -> None: ...

    def reports(self) -> list[WorkerReady]: ...

    async def done(self) -> str:
        """Return, and why, when the service needs this process no more."""


def run_serve(argv: Sequence[str]) -> int:
    started_s = time.monotonic()
    sources = service_parser("pdserve serve", __doc__.splitlines()[0]).parse(argv)
    plan = read_plan(sources)
    plan.router.check_ports()
    if plan.serve.ready_file:
        check_ready_file(Path(plan.serve.ready_file))
    setup_logging(plan.log)
    end_with_parent(plan.process)
    say = line_sayer(plan.log)
    if idle := plan.idle_prefill_workers(sources):
        say(idle)
    launcher = launcher_of(plan, say)
    with asyncio.Runner() as runner:
        return runner.run(_serve(plan, launcher, started_s, say))


def launcher_of(plan: ServicePlan, report: Callable[[str], None]) -> Launcher:
    """The launcher asked for. On this host, the model is prepared and the cores are divided first;
    on a cluster, each node prepares the model itself.

    Raises:
        ConfigError, ModelFileError: the host has too little for it, or the model is unusable.
    """
    if plan.serve.launcher == "ray":
        from cluster.onray.service import RayService

        return RayService(plan, clock=MonotonicClock(), say=report)
    spec = plan.cluster_spec(inspect_host(with_cuda=plan.wants_cuda()))
    return make_launcher(prepare_once(plan, report), spec, report)


def prepare_once(plan: ServicePlan, report: Callable[[str], None]) -> ServicePlan:
    """The model made ready for all processes, before any of them is started."""
    engine: EngineConfig = plan.engine(Role.DECODE)
    if engine.engine != "model":
        return plan
    model = prepare(engine, progress=report)
    report(f"model {model.name} ({model.dtype}, {model.num_parameters / 1e6:.1f}M parameters)")
    name = plan.router.served_model_name or model.name
    return plan.with_model(str(model.folder), name)


def say(line: str) -> None:
    """To standard error, so that standard output stays for scripts."""
    print(line, file=sys.stderr, flush=True)


def line_sayer(log: LogConfig) -> Callable[[str], None]:
    """``say`` in the format of the log: with JSON every line is an object, children's too."""
    if log.log_format == "text":
        return say
    return lambda line: say(line if line.startswith("{") else line_of(log, "launcher", text=line))


def make_launcher(plan: ServicePlan, spec: ClusterSpec, report: Callable[[str], None]) -> Launcher:
    if plan.serve.launcher == "inproc":
        from cluster.inproc import InprocService

        return InprocService(plan, spec, clock=MonotonicClock(), say=report)
    from cluster.local import LocalService

    return LocalService(plan, spec, clock=MonotonicClock(), say=report)


async def _serve(
    plan: ServicePlan, launcher: Launcher, started_s: float, say: Callable[[str], None]
) -> int:
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(stop_signals())
        stack.push_async_callback(launcher.kill)
        if not await unless(signals.drain, launcher.start()):
            say("stopped before the service was up")
            return 130
        say(_announcement(plan, launcher, started_s))
        done = asyncio.create_task(launcher.done())
        stack.callback(done.cancel)
        if await unless(signals.drain, asyncio.wait({done})):
            say(done.result())
        else:
            await _stop(launcher, plan, signals, say)
    return 0


def _announcement(plan: ServicePlan, launcher: Launcher, started_s: float) -> str:
    address = launcher.address
    if plan.serve.ready_file:
        write_ready_file(Path(plan.serve.ready_file), address, launcher.reports())
    took_s = time.monotonic() - started_s
    return (
        f"serving {address.model_name} ({plan.router.mode}) after {took_s:.1f} s: "
        f"{address.http_url}/v1 and gRPC {address.grpc_target}; Ctrl-C stops"
    )


async def _stop(
    launcher: Launcher, plan: ServicePlan, signals: StopSignals, say: Callable[[str], None]
) -> None:
    grace_s = plan.process.drain_grace_s
    say(f"stopping: running requests have {grace_s:g} s to finish; Ctrl-C again stops now")
    if await unless(signals.now, launcher.stop()):
        say("stopped")
    else:
        say("stopping now")
