"""What only the nixl transport has: agents of other processes, and ends that die by SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from cluster.http_stream import stream_completion
from kvtransfer.transports.base import Connection
from kvtransfer.transports.grpc import GrpcListener
from pdserve.errors import FrameCorrupt, PeerUnreachable
from pdserve.types import Endpoint
from support import kv_process
from support.killed_reader import check_the_kv_goes_to_the_next_reader
from support.kv_pair import LAYOUT, kv_pair, until
from support.kv_process import other_process
from support.kv_transports import CASES, Carrier
from support.local_service import local_service

_MISSING = CASES["nixl"].missing()
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"nixl: {_MISSING}")


def dialer_of(carriers: list[Carrier]) -> Any:
    return carriers[0].dialer


async def test_a_holder_killed_while_it_is_read_leaves_nothing() -> None:
    carriers: list[Carrier] = []
    async with (
        other_process("nixl", "hold") as (process, address),
        kv_pair("nixl", wrap=carriers.append) as pair,
    ):
        dialer = dialer_of(carriers)
        num_slots = dialer.landing.num_free
        ticket = pair.ticket(kv_process.NUM_TOKENS, endpoints=(Endpoint("nixl", address),))
        reading = pair.redeem(ticket)
        await until(lambda: pair.intake.bytes_taken > 0)
        assert dialer.num_holders == 1
        process.kill()
        with pytest.raises(PeerUnreachable):
            await reading
        await until(lambda: dialer.num_holders == 0)
        assert dialer.landing.num_free == num_slots
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
        with pytest.raises(PeerUnreachable):
            await dialer.dial(address)


async def test_a_reader_killed_while_it_reads_leaves_the_kv_to_the_next() -> None:
    await check_the_kv_goes_to_the_next_reader("nixl")


async def test_nothing_outside_the_pool_is_read() -> None:
    carriers: list[Carrier] = []
    async with kv_pair("nixl", wrap=carriers.append) as pair:
        connection = await carriers[0].dialer.dial(pair.endpoint.address)
        assert connection.window is not None
        out = memoryview(bytearray(LAYOUT.block_bytes))
        placed: list[memoryview] = []
        await connection.window.read([LAYOUT.block_bytes], [out], placed.append)
        assert out == pair.source.view(1)
        assert placed == [out]
        for offset in (-1, pair.source.num_bytes - 1):
            with pytest.raises(FrameCorrupt, match="pool"):
                await connection.window.read([offset], [out], placed.append)
        assert len(placed) == 1
        await connection.close()


def _not_msgpack(shown: bytes) -> bytes:
    return b"\xc1 what is this"


def _no_memory(shown: bytes) -> bytes:
    return bytes(msgpack.packb(["here", 1, "DRAM", 0, b""]))


def _broken_metadata(shown: bytes) -> bytes:
    fields = msgpack.unpackb(shown)
    return bytes(msgpack.packb([*fields[:-1], fields[-1][:-20]]))


def _unknown_backend(shown: bytes) -> bytes:
    fields = msgpack.unpackb(shown)
    return bytes(msgpack.packb([*fields[:-1], fields[-1].replace(b"UCX", b"UCZ")]))


@pytest.mark.parametrize("change", [_not_msgpack, _no_memory, _broken_metadata, _unknown_backend])
async def test_a_holder_whose_agent_cannot_be_used_is_read_by_the_next_transport(
    change: Callable[[bytes], bytes],
) -> None:
    """It answers as a holder does, but for what it shows of its memory."""
    async with kv_pair("nixl") as pair:
        other = CASES["nixl"].make(pair.source, pair.config)
        await other.listener.start(pair.exporter.serve)

        async def show(connection: Connection) -> None:
            with contextlib.suppress(PeerUnreachable):
                await connection.receive()
                await connection.send(change(other.listener._shown))  # type: ignore[attr-defined]
                await connection.receive()

        listener = GrpcListener()
        odd = replace(await listener.start(show), transport="nixl")
        try:
            with pytest.raises(PeerUnreachable):
                await pair.importer.dialers["nixl"].dial(odd.address)
            ticket = pair.ticket(9, endpoints=(odd, pair.endpoint))
            export = pair.offer_computed(ticket)
            pair.take(await pair.redeem(ticket), export)
        finally:
            await other.listener.close()
            await other.dialer.close()
            await listener.close()


async def test_a_whole_service_uses_it_where_it_is_named() -> None:
    async with local_service("--kv-transports=nixl,grpc") as (service, said):
        chunks = await asyncio.to_thread(
            lambda: list(
                stream_completion(
                    service.address.http_url,
                    "/v1/completions",
                    {"prompt": "hello there", "max_tokens": 5, "temperature": 0,
                     "pdserve_timing": True},
                    60,
                )
            )
        )  # fmt: skip
        ledger = next(chunk["pdserve"] for chunk in chunks if "pdserve" in chunk)
        assert ledger["kv_transport"] == "nixl"
        assert ledger["kv_tokens"] == len("hello there")
        await service.stop()
        assert not [line for line in said if "killed" in line or "died" in line]
