"""What only the shm transport has: memory of another process, and ends that die by SIGKILL."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from kvtransfer.transports.shm import ShmDialer
from pdserve.errors import FrameCorrupt, PeerUnreachable
from pdserve.types import Endpoint
from support import kv_process
from support.killed_reader import check_the_kv_goes_to_the_next_reader
from support.kv_pair import LAYOUT, KvPair, kv_pair, settle, until
from support.kv_process import other_process
from support.kv_transports import Carrier

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shm: no memfd_create")


def maps_memory_of_others() -> int:
    """Read-only mappings of pools in this process."""
    lines = Path("/proc/self/maps").read_text("ascii").splitlines()
    return sum("memfd:pdserve-kv" in line and " r--s " in line for line in lines)


async def test_a_holder_killed_while_it_is_read_leaves_nothing() -> None:
    dialer = ShmDialer()

    def wrap(carrier: Carrier) -> None:
        carrier.dialer = dialer

    async with (
        other_process("shm", "hold") as (process, address),
        kv_pair("shm", wrap=wrap) as pair,
    ):
        ticket = pair.ticket(kv_process.NUM_TOKENS, endpoints=(Endpoint("shm", address),))
        reading = pair.redeem(ticket)
        await until(lambda: pair.intake.bytes_taken > 0)
        assert (dialer.num_mapped, maps_memory_of_others()) == (1, 1)
        process.kill()
        with pytest.raises(PeerUnreachable):
            await reading
        await until(lambda: dialer.num_mapped == 0)
        assert maps_memory_of_others() == 0
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
        with pytest.raises(PeerUnreachable):
            await dialer.dial(address)


async def test_a_reader_killed_while_it_reads_leaves_the_kv_to_the_next() -> None:
    await check_the_kv_goes_to_the_next_reader("shm")


async def read_once(pair: KvPair) -> None:
    ticket = pair.ticket(9)
    export = pair.offer_computed(ticket)
    pair.take(await pair.redeem(ticket), export)
    await export.outcome()
    await until(lambda: pair.exporter.num_connections == 0)
    await settle()


async def test_reads_one_after_another_share_a_socket() -> None:
    dialer = ShmDialer()

    def wrap(carrier: Carrier) -> None:
        carrier.dialer = dialer

    async with kv_pair("shm", wrap=wrap) as pair:
        for _ in range(3):
            await read_once(pair)
            assert dialer.num_sockets == 1
        two = [await dialer.dial(pair.endpoint.address) for _ in range(2)]
        assert dialer.num_sockets == 2  # one read at a time on each
        await until(lambda: pair.exporter.num_connections == 1)  # the other speaks first
        for connection in two:
            await connection.close()


async def test_a_cancelled_read_leaves_no_socket_to_the_next() -> None:
    dialer = ShmDialer()

    def wrap(carrier: Carrier) -> None:
        carrier.dialer = dialer

    async with kv_pair("shm", wrap=wrap) as pair:
        await read_once(pair)
        ticket = pair.ticket(9)
        export = pair.offer(ticket)  # nothing is computed: the read waits
        reading = pair.redeem(ticket)
        await export.wait_opened()
        await settle()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: dialer.num_sockets == 0)
        await until(lambda: pair.exporter.num_connections == 0)
        export.close("cancelled", "by the test")
        await read_once(pair)


async def test_nothing_outside_the_pool_is_read() -> None:
    carriers: list[Carrier] = []
    async with kv_pair("shm", wrap=carriers.append) as pair:
        connection = await carriers[0].dialer.dial(pair.endpoint.address)
        assert connection.window is not None
        await until(lambda: pair.exporter.num_connections == 1)
        out = memoryview(bytearray(LAYOUT.block_bytes))
        placed: list[memoryview] = []
        await connection.window.read([LAYOUT.block_bytes], [out], placed.append)
        assert out == pair.source.view(1)
        assert placed == [out]
        with pytest.raises(FrameCorrupt, match="pool"):
            await connection.window.read([pair.source.num_bytes - 1], [out], placed.append)
        assert len(placed) == 1
        await connection.close()


async def test_what_cannot_be_reached_by_shm_is_read_by_the_next_transport() -> None:
    """Another host offers an address that nobody here has."""
    async with kv_pair("shm") as pair:
        ticket = pair.ticket(9, endpoints=(Endpoint("shm", "pdserve-kv-elsewhere"), pair.endpoint))
        export = pair.offer_computed(ticket)
        imported = await pair.redeem(ticket)
        assert imported.timing.passed_over == "shm"
        pair.take(imported, export)


async def test_a_holder_that_shows_nothing_holds_up_no_other() -> None:
    """As a stopped process would: it is connected to, and says nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind("\0pdserve-test-silent.memory")
        silent.listen()
        dialer = ShmDialer()
        waiting = asyncio.create_task(dialer.dial("pdserve-test-silent"))
        try:
            async with other_process("shm", "hold") as (_, address):
                async with asyncio.timeout(20):
                    connection = await dialer.dial(address)
                assert not waiting.done()
                await connection.close()
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await dialer.close()


STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for address in (sys.argv[1], sys.argv[1] + ".memory"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect("\\0" + address)
        print(socket.recv_fds(sock, 1, 1)[:2])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_another_user_is_shown_nothing() -> None:
    async with kv_pair("shm") as pair:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STRANGER, pair.endpoint.address, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert (process.returncode, out.splitlines()) == (0, [b"(b'', [])"] * 2)
        assert pair.exporter.num_connections == 0
