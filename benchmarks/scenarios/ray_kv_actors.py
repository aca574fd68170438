"""Actors of the scenario ray_kv: a holder and a reader of KV, and ends of Ray's own transport."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import ray
import torch

from benchmarks.scenarios.transport import receive_raw
from benchmarks.scenarios.transport_holder import (
    FilledBuffers,
    WholeMemory,
    layout_of,
    serve_raw,
    ticket_of,
)
from kvtransfer.config import TransferConfig
from kvtransfer.exporter import Exporter
from kvtransfer.importer import Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import FirstTokenInfo
from kvtransfer.store import Lease
from kvtransfer.transports.base import Dialer, Listener
from kvtransfer.transports.grpc import GrpcDialer, GrpcListener
from kvtransfer.transports.ray import RayDialer, RayListener
from kvtransfer.transports.shm import ShmDialer, ShmListener
from kvtransfer.transports.tcp import TcpDialer, TcpListener
from pdserve.clock import MonotonicClock
from pdserve.types import Endpoint, WorkerId


class KvHolder:
    """Offers the KV of one prompt as often as it is asked to, over every transport."""

    def __init__(self, dtype: str, block_size: int, num_tokens: int) -> None:
        self._layout = layout_of(dtype, block_size)
        self._num_tokens = num_tokens
        self._buffers = FilledBuffers(self._layout, self._layout.num_blocks(num_tokens), seed=1)
        self._exporter = Exporter(self._buffers, MonotonicClock(), TransferConfig())

    async def listen(self) -> tuple[list[Endpoint], int]:
        """Its endpoints, and the port of its raw socket."""
        listeners: list[Listener] = [
            GrpcListener(), TcpListener(), ShmListener(self._buffers.memory_fd), RayListener(),
        ]  # fmt: skip
        self._listeners = listeners
        raw = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=serve_raw, args=(raw, self._buffers.memory), daemon=True).start()
        endpoints = [await each.start(self._exporter.serve) for each in listeners]
        return endpoints, raw.getsockname()[1]

    async def offer(self, number: int) -> None:
        ticket = ticket_of(f"read-{number}", self._layout, self._num_tokens)
        export = self._exporter.offer(
            ticket, WholeMemory(self._buffers.num_blocks), ticket.num_tokens
        )
        export.advance(ticket.num_tokens)
        export.commit(FirstTokenInfo(0, 1))


class KvReader:
    """Reads into blocks of its own; seconds are from dialling to verified KV."""

    def __init__(self, dtype: str, block_size: int, num_tokens: int) -> None:
        self._layout = layout_of(dtype, block_size)
        self._num_tokens = num_tokens
        self._buffers = FilledBuffers(self._layout, self._layout.num_blocks(num_tokens), seed=0)
        config = TransferConfig()
        dialers: dict[str, Dialer] = {
            "grpc": GrpcDialer(config.max_message_bytes(self._layout)),
            "shm": ShmDialer(),
            "tcp": TcpDialer(),
            "ray": RayDialer(),
        }
        self._importer = Importer(
            self._buffers, MonotonicClock(), config, WorkerId("reader"), "0", dialers
        )
        self._intake = IntakeBudget(config.intake_bytes_per_step)  # idle: no limit

    async def read(self, number: int, endpoint: Endpoint) -> float:
        async def make_room(num_tokens: int) -> Lease:
            return WholeMemory(self._buffers.num_blocks)

        ticket = ticket_of(f"read-{number}", self._layout, self._num_tokens, (endpoint,))
        started_s = time.perf_counter()
        await self._importer.redeem(ticket, make_room, self._intake)
        seconds = time.perf_counter() - started_s
        await self._importer.close()  # the holder has taken the Ack: nothing of this read goes on
        return seconds

    async def receive_raw(self, port: int) -> float:
        return await asyncio.to_thread(receive_raw, port, self._buffers)


@ray.remote(num_cpus=0)
class DirectEnd:
    """One end of Ray's direct transport; gives and takes one tensor of the same bytes."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = torch.ones(num_bytes, dtype=torch.uint8)

    @ray.method(tensor_transport="gloo")
    def give(self) -> torch.Tensor:
        return self._memory

    def take(self, tensor: Any) -> int:
        self._memory.copy_(tensor)
        return int(self._memory[-1])
