"""What every transport must do with messages: one conformance suite, once a transport.

KV reads over all of them are test_kv_read.py, their deaths test_kv_faults.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvtransfer.config import MIB, TransferConfig
from kvtransfer.transports.base import Connection
from pdserve.errors import PeerUnreachable
from pdserve.types import Endpoint
from support.kv_pair import LAYOUT, ByteBuffers, settle, until
from support.kv_transports import Carrier, each_transport, make_carrier
from support.tasks import none_left

pytestmark = each_transport()
NUM_BLOCKS = 8
MOST_AHEAD_BYTES = 24 * MIB  # a sender may be so far ahead of a receiver that does not read


class Ends:
    """A listener that hands each accepted connection to the test until ``let_go``."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.endpoint: Endpoint
        self.accepted: asyncio.Queue[Connection] = asyncio.Queue()
        self.let_go = asyncio.Event()
        self.num_handling = 0

    async def handle(self, connection: Connection) -> None:
        self.num_handling += 1
        try:
            self.accepted.put_nowait(connection)
            await self.let_go.wait()
        finally:
            self.num_handling -= 1
            await connection.close()

    async def connect(self) -> tuple[Connection, Connection]:
        """(the dialler's end, the listener's end)"""
        near = await self.carrier.dialer.dial(self.endpoint.address)
        await near.send(b"hello")  # some carriers connect with the first message
        far = await self.accepted.get()
        assert await far.receive() == b"hello"
        return near, far


@asynccontextmanager
async def ends_of(transport: str) -> AsyncIterator[Ends]:
    """Both ends; afterwards no task and no handler may be left."""
    before = asyncio.all_tasks()
    buffers = ByteBuffers(LAYOUT, NUM_BLOCKS, 1)
    ends = Ends(make_carrier(transport, buffers, TransferConfig()))
    ends.endpoint = await ends.carrier.listener.start(ends.handle)
    assert ends.endpoint.transport == transport
    try:
        yield ends
    finally:
        await ends.carrier.dialer.close()
        await ends.carrier.listener.close()
    await until(lambda: ends.num_handling == 0)
    await none_left(before)


async def send_all(connection: Connection, messages: list[bytes]) -> None:
    for message in messages:
        await connection.send(message)


async def rest_of(connection: Connection) -> list[bytes]:
    """What still comes before the end."""
    messages: list[bytes] = []
    while True:
        try:
            messages.append(await connection.receive())
        except PeerUnreachable:
            return messages


@pytest.mark.parametrize("size", [1, 100, 65_536, 4 * MIB + 100])
async def test_messages_go_both_ways_in_order(transport: str, size: int) -> None:
    async with ends_of(transport) as ends:
        near, far = await ends.connect()
        answers = [bytes([number]) * size for number in range(3)]
        async with asyncio.TaskGroup() as tasks:  # a sender may wait for its receiver
            tasks.create_task(send_all(far, answers))
            for answer in answers:
                await near.send(answer[:1000])
                assert await near.receive() == answer
        assert [await far.receive() for _ in range(3)] == [answer[:1000] for answer in answers]


async def test_both_ways_at_once(transport: str) -> None:
    async with ends_of(transport) as ends:
        near, far = await ends.connect()

        async def send(connection: Connection) -> None:
            for number in range(200):
                await connection.send(b"%d" % number)

        async def receive(connection: Connection) -> list[bytes]:
            return [await connection.receive() for _ in range(200)]

        wanted = [b"%d" % number for number in range(200)]
        got = await asyncio.gather(send(near), send(far), receive(near), receive(far))
        assert got[2:] == [wanted, wanted]


async def test_what_the_listener_sent_before_the_end_arrives(transport: str) -> None:
    async with ends_of(transport) as ends:
        near, far = await ends.connect()
        for number in range(5):
            await far.send(b"%d" % number)
        ends.let_go.set()
        assert await rest_of(near) == [b"0", b"1", b"2", b"3", b"4"]
        with pytest.raises(PeerUnreachable):
            await near.receive()


@pytest.mark.parametrize("closer", ["near", "far"])
async def test_a_closed_connection_is_over_for_both_ends(transport: str, closer: str) -> None:
    async with ends_of(transport) as ends:
        near, far = await ends.connect()
        closing, other = (near, far) if closer == "near" else (far, near)
        pending = asyncio.create_task(other.receive())
        await settle()
        await closing.close()
        await closing.close()
        for call in (closing.receive(), closing.send(b"x")):
            with pytest.raises(PeerUnreachable):
                await call
        ends.let_go.set()
        with pytest.raises(PeerUnreachable):
            await pending


async def test_closing_one_leaves_the_others(transport: str) -> None:
    async with ends_of(transport) as ends:
        pairs = [await ends.connect() for _ in range(5)]
        await pairs[2][0].close()
        with pytest.raises(PeerUnreachable):
            await pairs[2][1].receive()
        for number, (near, far) in enumerate(pairs):
            if number != 2:
                await far.send(b"%d" % number)
                assert await near.receive() == b"%d" % number


async def test_a_sender_waits_for_one_who_does_not_read(transport: str) -> None:
    """However much is sent, so much and no more lies in between. Another connection still works."""
    async with ends_of(transport) as ends:
        near, far = await ends.connect()
        num_sent = 0

        async def flood() -> None:
            nonlocal num_sent
            for _ in range(256):
                await far.send(bytes(MIB))
                num_sent += 1

        flooding = asyncio.create_task(flood())
        other_near, other_far = await ends.connect()
        for _ in range(300):
            await other_near.send(b"x")
            assert await other_far.receive() == b"x"
        assert not flooding.done()
        assert num_sent * MIB <= MOST_AHEAD_BYTES
        for _ in range(256):
            assert len(await near.receive()) == MIB
        await flooding


async def test_a_sender_that_waits_learns_of_the_end(transport: str) -> None:
    async with ends_of(transport) as ends:
        near, far = await ends.connect()

        async def flood() -> None:
            while True:
                await far.send(bytes(MIB))

        flooding = asyncio.create_task(flood())
        await near.receive()
        await near.close()
        with pytest.raises(PeerUnreachable):
            await flooding


async def test_a_cancelled_receive_leaves_nothing(transport: str) -> None:
    async with ends_of(transport) as ends:
        near, far = await ends.connect()
        pending = asyncio.create_task(near.receive())
        await settle()
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        await near.close()
        with pytest.raises(PeerUnreachable):
            await far.receive()


async def test_the_listener_ends_its_connections_and_waits_for_handlers(transport: str) -> None:
    async with ends_of(transport) as ends:
        near, _ = await ends.connect()
        await ends.carrier.listener.close()
        assert ends.num_handling == 0
        with pytest.raises(PeerUnreachable):
            await near.receive()
        with pytest.raises(PeerUnreachable):
            await ends.carrier.dialer.dial(ends.endpoint.address)


async def test_the_dialer_ends_its_connections(transport: str) -> None:
    async with ends_of(transport) as ends:
        near, far = await ends.connect()
        pending = asyncio.create_task(near.receive())
        await settle()
        await ends.carrier.dialer.close()
        for call in (pending, near.send(b"x"), far.receive()):
            with pytest.raises(PeerUnreachable):
                await call


async def test_nobody_listens_any_more(transport: str) -> None:
    async with ends_of(transport) as ends:
        await ends.carrier.listener.close()
        for _ in range(2):
            with pytest.raises(PeerUnreachable):
                await ends.carrier.dialer.dial(ends.endpoint.address)
