"""The KV path between two processes beside what the machine could do at best.

Ways to move the KV of one prompt, taken in turns within one run, since a machine's speed changes
over minutes:

    shm, tcp, grpc   exporter -> that transport -> importer: checksums, credit, own blocks, Ack
    nixl             the same, where --transports names it (make setup-nixl)
    raw socket       sendall -> recv_into over loopback TCP, between the same two processes
    memory copy      block by block within this process

"of raw" and "of copy" are ratios of medians.

The layout is that of SmolLM2-135M. The first round is not counted. Not covered: a step running at
the same time, other hosts, several reads at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from benchmarks.result import ScenarioResult
from benchmarks.scenarios.transport_holder import (
    FilledBuffers,
    WholeMemory,
    layout_of,
    read_endpoints,
    ticket_name,
    ticket_of,
)
from decode_worker.dialers import own_dialers
from kvtransfer.config import TransferConfig
from kvtransfer.importer import Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.store import Lease
from pdserve.clock import MonotonicClock
from pdserve.types import Endpoint, WorkerId

SUMMARY = "GB/s of each KV transport beside a raw socket and a memory copy"
_RECEIVE_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=2048, help="length of the prompt")
    parser.add_argument("--block-size", type=int, default=16, help="tokens a block")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument(
        "--loop", default="uvloop", choices=("uvloop", "asyncio"), help="event loop of both ends"
    )
    parser.add_argument("--frame-mib", type=float, default=4.0, help="most KV in one frame")
    parser.add_argument("--credit-mib", type=float, default=32.0)
    parser.add_argument("--transports", default="shm,tcp,grpc", help="of these and nixl")


def run(args: argparse.Namespace) -> ScenarioResult:
    factory = uvloop.new_event_loop if args.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        samples = runner.run(_measure(args))
    num_bytes = _num_bytes(args)
    rows: list[tuple[str, ...]] = [
        ("way", "GB/s", "min", "max", "ms", "of raw %", "of copy %"),
    ]  # fmt: skip
    median_s = {name: statistics.median(seconds) for name, seconds in samples.items()}
    for name, seconds in samples.items():
        rates = [num_bytes / each / 1e9 for each in seconds]
        shares = (median_s[best] / median_s[name] for best in ("raw socket", "memory copy"))
        row = (*_spread(rates), median_s[name] * 1e3, *(100 * share for share in shares))
        cells = (
            f"{value:.{digits}f}" for value, digits in zip(row, (2, 2, 2, 1, 0, 0), strict=True)
        )
        rows.append((name, *cells))
    data = {
        "layout": "SmolLM2-135M", "dtype": args.dtype, "num_tokens": args.tokens,
        "num_bytes": num_bytes, "frame_mib": args.frame_mib, "credit_mib": args.credit_mib,
        "loop": args.loop, "seconds": samples,
    }  # fmt: skip
    return ScenarioResult(rows=rows, data=data)


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _num_bytes(args: argparse.Namespace) -> int:
    layout = layout_of(args.dtype, args.block_size)
    return layout.num_blocks(args.tokens) * layout.block_bytes


async def _measure(args: argparse.Namespace) -> dict[str, list[float]]:
    layout = layout_of(args.dtype, args.block_size)
    num_blocks = layout.num_blocks(args.tokens)
    target, other = FilledBuffers(layout, num_blocks, 0), FilledBuffers(layout, num_blocks, 3)
    num_rounds = args.repeat + 1
    async with _holder(args, num_rounds) as (endpoints, raw_port):
        reader = KvReader(target, args)
        ways = (*(endpoint.transport for endpoint in endpoints), "raw socket", "memory copy")
        samples: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(num_rounds):
            for endpoint in endpoints:
                samples[endpoint.transport].append(await reader.read(endpoint, number))
            samples["raw socket"].append(receive_raw(raw_port, target))
            samples["memory copy"].append(_copy(target, other))
        await reader.close()
    return {name: seconds[1:] for name, seconds in samples.items()}


class KvReader:
    """The reader's end, as a decode worker has it."""

    def __init__(self, target: FilledBuffers, args: argparse.Namespace) -> None:
        config = TransferConfig(
            kv_transports=args.transports,
            max_frame_bytes=int(args.frame_mib * 2**20),
            credit_bytes=int(args.credit_mib * 2**20),
        )
        self._dialers = own_dialers(config, target.layout)
        self._importer = Importer(
            target, MonotonicClock(), config, WorkerId("reader"), "0", self._dialers
        )
        self._target = target
        self._num_tokens = args.tokens
        self._intake = IntakeBudget(config.intake_bytes_per_step)  # idle: no limit

    async def read(self, endpoint: Endpoint, number: int) -> float:
        """Seconds from dialling to verified KV."""

        async def make_room(num_tokens: int) -> Lease:
            return WholeMemory(self._target.num_blocks)

        name = ticket_name(endpoint.transport, number)
        ticket = ticket_of(name, self._target.layout, self._num_tokens, (endpoint,))
        started_s = time.perf_counter()
        await self._importer.redeem(ticket, make_room, self._intake)
        return time.perf_counter() - started_s

    async def close(self) -> None:
        await self._importer.close()
        for dialer in self._dialers.values():
            await dialer.close()


@contextlib.asynccontextmanager
async def _holder(
    args: argparse.Namespace, num_rounds: int
) -> AsyncIterator[tuple[tuple[Endpoint, ...], int]]:
    """The holder's process; yields its KV endpoints and the port of its raw socket."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.scenarios.transport_holder",
        args.dtype, str(args.block_size), str(args.tokens), str(num_rounds),
        str(int(args.frame_mib * 2**20)), args.loop, args.transports,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield read_endpoints(await process.stdout.readline())
    finally:
        process.stdin.close()  # its sign to end
        await process.wait()


def receive_raw(port: int, target: FilledBuffers) -> float:
    memory = target.memory
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started_s = time.perf_counter()
        connection.sendall(b"g")
        received = 0
        while received < len(memory):
            count = connection.recv_into(memory[received : received + _RECEIVE_BYTES])
            if not count:
                raise ConnectionError("the holder's raw socket ended early")
            received += count
        return time.perf_counter() - started_s


def _copy(target: FilledBuffers, source: FilledBuffers) -> float:
    started_s = time.perf_counter()
    for block_id in range(target.num_blocks):
        target.view(block_id)[:] = source.view(block_id)
    return time.perf_counter() - started_s
