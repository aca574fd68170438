"""Every transport a KV read may use, for tests that run over all of them.

A new transport is one entry of ``CASES``: the conformance suite (test_kv_transports.py), the suite
of KV reads (test_kv_read.py) and the fault tests take it from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from engine.block_pool import BlockBuffers
from kvtransfer.config import TransferConfig
from kvtransfer.transports.base import Dialer, Listener
from kvtransfer.transports.grpc import GrpcDialer, GrpcListener
from kvtransfer.transports.inproc import InprocNetwork
from kvtransfer.transports.shm import ShmDialer, ShmListener
from kvtransfer.transports.tcp import TcpDialer, TcpListener


class Carrier:
    """A listener and a dialer of one transport; tests wrap them to interfere."""

    def __init__(self, listener: Listener, dialer: Dialer) -> None:
        self.listener = listener
        self.dialer = dialer


@dataclass(frozen=True)
class TransportCase:
    """``make(holder's blocks, config)``; ``missing()`` says why it cannot run here, "" if it can.

    ``crosses``: whether the two ends may be in different processes. ``marks``: of its tests.
    """

    make: Callable[[BlockBuffers, TransferConfig], Carrier]
    crosses: bool = True
    missing: Callable[[], str] = lambda: ""
    marks: tuple[Any, ...] = ()


def _inproc(buffers: BlockBuffers, config: TransferConfig) -> Carrier:
    network = InprocNetwork()
    return Carrier(network.listener(), network.dialer())


def _grpc(buffers: BlockBuffers, config: TransferConfig) -> Carrier:
    return Carrier(GrpcListener(), GrpcDialer())


def _shm(buffers: BlockBuffers, config: TransferConfig) -> Carrier:
    # Blocks that cannot be shown: as a worker does, what everybody can read.
    if buffers.memory_fd is None:
        return _grpc(buffers, config)
    return Carrier(ShmListener(buffers.memory_fd), ShmDialer())


def _tcp(buffers: BlockBuffers, config: TransferConfig) -> Carrier:
    return Carrier(TcpListener(), TcpDialer())


def _ray(buffers: BlockBuffers, config: TransferConfig) -> Carrier:
    """What the holder says goes through the store whatever its size: KV of tests is small."""
    from kvtransfer.transports.ray import RayDialer, RayListener

    return Carrier(RayListener(least_object_bytes=0), RayDialer())


def _nixl(buffers: BlockBuffers, config: TransferConfig) -> Carrier:
    """As a worker does: a pool that cannot be shown is read over gRPC."""
    if buffers.memory_fd is None:
        return _grpc(buffers, config)
    from kvtransfer.transports.nixl import NixlDialer, NixlListener, pool_memory

    return Carrier(NixlListener(pool_memory(buffers)), NixlDialer())


def _no_nixl() -> str:
    return "" if find_spec("nixl") else "the package is not installed (make setup-nixl)"


def _no_memfd() -> str:
    return "" if hasattr(os, "memfd_create") else "no memfd_create on this system"


CASES = {
    "inproc": TransportCase(_inproc, crosses=False),
    "grpc": TransportCase(_grpc),
    "tcp": TransportCase(_tcp),
    "shm": TransportCase(_shm, missing=_no_memfd),
    "nixl": TransportCase(_nixl, missing=_no_nixl),
}


# Those that need a cluster: tests/ray/test_kv_ray.py runs the same suites over them.
ON_A_CLUSTER = {"ray": TransportCase(_ray)}


def each_transport(*, crossing: bool = False) -> pytest.MarkDecorator:
    """Parametrises ``transport`` over all; ``crossing``: only those between processes.

    What a machine lacks is skipped by name.
    """
    names = [name for name, case in CASES.items() if case.crosses or not crossing]
    return pytest.mark.parametrize("transport", [_parameter(name) for name in names])


def make_carrier(transport: str, buffers: BlockBuffers, config: TransferConfig) -> Carrier:
    return (CASES | ON_A_CLUSTER)[transport].make(buffers, config)


def _parameter(name: str) -> Any:
    case = CASES[name]
    reason = case.missing()
    skip = (pytest.mark.skip(reason=f"{name}: {reason}"),) if reason else ()
    return pytest.param(name, marks=(*case.marks, *skip))
