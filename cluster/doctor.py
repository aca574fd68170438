"""Checks of this host against the options of a service: what would go wrong before it does.

Each check gives findings and never raises. Binds ports for a moment; starts nothing, loads no torch
and leaves nothing behind. Not covered: other hosts, whether a GPU works (only whether the driver
counts it), whether weights are whole (the first start checks them), ports of prefill workers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.host import inspect_host
from cluster.plan import ServicePlan
from engine.cpu_memory import default_cpu_kv_bytes
from engine.modelfiles.resolve import resolve_source
from pdserve.config import cache_folder
from pdserve.errors import PdserveError
from pdserve.host_memory import available_memory_bytes
from pdserve.types import Role

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
_PROCESS_MIB = 400  # of one role besides weights and KV
_MIN_OPEN_FILES = 1024
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """``verdict``: "ok", "note" (works, but know it) or "PROBLEM" (the service will not start)."""

    check: str
    verdict: str
    text: str
    next_step: str = ""


def examine(plan: ServicePlan) -> list[Finding]:
    """Every check, in the order in which a start would meet them."""
    checks: tuple[Callable[[ServicePlan], Iterator[Finding]], ...] = (
        _versions, _model, _cores, _memory, _ports, _compiler, _cuda, _ray, _open_files,
    )  # fmt: skip
    return [finding for check in checks for finding in check(plan)]


def _versions(plan: ServicePlan) -> Iterator[Finding]:
    for name in ("torch", "grpcio", "tokenizers"):
        try:
            yield Finding("packages", OK, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", PROBLEM, f"{name} is not installed", "run `make setup`")


def _model(plan: ServicePlan) -> Iterator[Finding]:
    engine = plan.engine(Role.DECODE)
    if engine.engine != "model":
        yield Finding("model", OK, f"the {engine.engine} engine needs none")
        return
    try:
        source = resolve_source(engine.model)
        yield Finding("model", OK, f"{source.name}: {source.kind} at {source.path}")
    except PdserveError as error:
        yield Finding("model", PROBLEM, str(error), error.next_step or "see --model")
    folder = cache_folder()
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not os.access(there, os.W_OK):
        yield Finding(
            "model cache", PROBLEM, f"{there} cannot be written", "set PDSERVE_CACHE to a folder"
        )
        return
    free_mib = shutil.disk_usage(there).free / _MIB
    yield Finding("model cache", OK, f"{folder}: {free_mib:,.0f} MiB free")


def _cores(plan: ServicePlan) -> Iterator[Finding]:
    try:
        spec = plan.cluster_spec(inspect_host(with_cuda=plan.wants_cuda()))
    except PdserveError as error:
        yield Finding("cores and devices", PROBLEM, str(error), error.next_step or "see --cpus")
        return
    num_cores = len(os.sched_getaffinity(0))
    on_cpu = [worker for worker in spec.workers if worker.device == "cpu"]
    threads = sum(worker.threads for worker in on_cpu)
    text = f"{num_cores} cores, {threads} compute threads in {len(on_cpu)} CPU workers"
    if threads > num_cores:
        yield Finding(
            "cores", NOTE, text, "engines that share cores slow each other down: fewer workers"
        )
    else:
        yield Finding("cores", OK, text)
    load = os.getloadavg()[0]
    if load > num_cores / 2:
        yield Finding("cores", NOTE, f"load average {load:.1f}", "other work uses these cores")


def _memory(plan: ServicePlan) -> Iterator[Finding]:
    available_bytes = available_memory_bytes()
    available_mib = available_bytes / _MIB
    num_cores = len(os.sched_getaffinity(0))
    counts = {Role.PREFILL: plan.serve.prefill_workers, Role.DECODE: plan.serve.decode_workers}
    need_mib = float(_PROCESS_MIB)
    for role in plan.roles:
        engine = plan.engine(role)
        kv_mib = engine.kv_memory_mib
        if not kv_mib and engine.engine == "model" and engine.device == "cpu":
            threads = engine.threads or max(1, num_cores // sum(counts[r] for r in plan.roles))
            kv_mib = default_cpu_kv_bytes(threads, available_bytes) / _MIB
        need_mib += counts[role] * (kv_mib + _PROCESS_MIB)
    text = f"{available_mib:,.0f} MiB available, about {need_mib:,.0f} MiB for KV and processes"
    if need_mib > available_mib:
        yield Finding("memory", PROBLEM, text, "lower --kv-memory-mib or the number of workers")
    else:
        yield Finding("memory", OK, f"{text}, and the weights once")


def _ports(plan: ServicePlan) -> Iterator[Finding]:
    host = plan.router.listen
    taken: dict[int, str] = {}
    for name in ("http_port", "grpc_port", "worker_port"):
        port = getattr(plan.router, name)
        flag = "--" + name.replace("_", "-")
        if port == 0:
            yield Finding("ports", OK, f"{name}: any free one")
        elif port in taken:
            text = f"{name} and {taken[port]} are both {port}"
            yield Finding("ports", PROBLEM, text, f"choose another {flag}")
        elif problem := why_not_bound(host, port):
            advice = f"stop what listens there, or choose another {flag} or --listen"
            yield Finding("ports", PROBLEM, f"{name} {host}:{port}: {problem}", advice)
        else:
            yield Finding("ports", OK, f"{name} {host}:{port} is free")
        taken.setdefault(port, name)
    if host not in ("127.0.0.1", "::1", "localhost"):
        text = f"listens on {host} without TLS and authentication"
        yield Finding("ports", NOTE, text, "let only trusted peers reach these ports")


def why_not_bound(host: str, port: int) -> str:
    """Binds for a moment; the empty text if that works."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _compiler(plan: ServicePlan) -> Iterator[Finding]:
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            yield Finding("C compiler", OK, found)
            return
    yield Finding("C compiler", NOTE, "none found", "kernels in C need one; all else works without")


def _cuda(plan: ServicePlan) -> Iterator[Finding]:
    count = inspect_host(with_cuda=True).num_cuda_devices
    if count or not plan.wants_cuda():
        yield Finding("CUDA", OK, f"{count} devices" if count else "no device, none asked for")
    else:
        yield Finding("CUDA", PROBLEM, "no device, but --device asks for one", "use --device cpu")
    build = importlib.metadata.version("torch") if importlib.util.find_spec("torch") else ""
    if build.endswith("+cpu") and plan.wants_cuda():
        yield Finding("CUDA", PROBLEM, f"torch {build} is built without CUDA",
                      "set TORCH_REQUIREMENT and run `make setup`")  # fmt: skip


def _ray(plan: ServicePlan) -> Iterator[Finding]:
    if importlib.util.find_spec("ray"):
        yield Finding("Ray", OK, f"ray {importlib.metadata.version('ray')}")
    else:
        yield Finding("Ray", OK, "not installed; only the Ray launcher needs it")


def _open_files(plan: ServicePlan) -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _MIN_OPEN_FILES:
        yield Finding("open files", NOTE, f"at most {soft}", "raise it: ulimit -n 65536")
    else:
        yield Finding("open files", OK, f"at most {soft}")
