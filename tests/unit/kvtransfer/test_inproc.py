import asyncio

import pytest

from kvtransfer.transports.base import Connection
from kvtransfer.transports.inproc import MAX_QUEUED_MESSAGES, InprocNetwork
from pdserve.errors import PeerUnreachable
from support.kv_pair import settle


class Host:
    """A listener whose handler hands its connection to the test and waits to be let go."""

    def __init__(self) -> None:
        self.network = InprocNetwork()
        self.listener = self.network.listener()
        self.connections: asyncio.Queue[Connection] = asyncio.Queue()
        self.let_go = asyncio.Event()

    async def handle(self, connection: Connection) -> None:
        self.connections.put_nowait(connection)
        await self.let_go.wait()

    async def connect(self) -> tuple[Connection, Connection]:
        """(the dialler's end, the listener's end)"""
        endpoint = await self.listener.start(self.handle)
        near = await self.network.dialer().dial(endpoint.address)
        return near, await self.connections.get()


async def test_messages_go_both_ways_in_order() -> None:
    host = Host()
    near, far = await host.connect()
    for text in (b"1", b"2"):
        await near.send(text)
        await far.send(text + b"!")
    assert [await far.receive(), await far.receive()] == [b"1", b"2"]
    assert [await near.receive(), await near.receive()] == [b"1!", b"2!"]
    await host.listener.close()


@pytest.mark.parametrize("closer", ["near", "far"])
async def test_what_was_sent_before_the_end_still_arrives(closer: str) -> None:
    host = Host()
    near, far = await host.connect()
    ends = (near, far) if closer == "near" else (far, near)
    await ends[0].send(b"last")
    await ends[0].close()
    assert await ends[1].receive() == b"last"
    for call in (ends[1].receive(), ends[1].send(b""), ends[0].receive(), ends[0].send(b"")):
        with pytest.raises(PeerUnreachable):
            await call
    await host.listener.close()


async def test_a_pending_receive_ends_with_the_connection() -> None:
    host = Host()
    near, far = await host.connect()
    pending = asyncio.create_task(near.receive())
    await settle()
    await far.close()
    with pytest.raises(PeerUnreachable):
        await pending
    await host.listener.close()


async def test_the_end_of_the_handler_ends_the_connection() -> None:
    host = Host()
    near, _ = await host.connect()
    host.let_go.set()
    with pytest.raises(PeerUnreachable):
        await near.receive()
    await host.listener.close()


async def test_a_sender_waits_for_a_slow_receiver() -> None:
    host = Host()
    near, far = await host.connect()
    for _ in range(MAX_QUEUED_MESSAGES):
        await near.send(b"x")
    waiting = asyncio.create_task(near.send(b"y"))
    await settle()
    assert not waiting.done()
    await far.receive()
    await waiting
    stuck = asyncio.create_task(near.send(b"z"))
    await settle()
    await far.close()
    with pytest.raises(PeerUnreachable):
        await stuck
    await host.listener.close()


async def test_nobody_listens() -> None:
    host = Host()
    endpoint = await host.listener.start(host.handle)
    with pytest.raises(PeerUnreachable, match="inproc-9"):
        await host.network.dialer().dial("inproc-9")
    with pytest.raises(PeerUnreachable):
        await InprocNetwork().dialer().dial(endpoint.address)
    await host.listener.close()
    with pytest.raises(PeerUnreachable):
        await host.network.dialer().dial(endpoint.address)


async def test_closing_either_side_leaves_nothing() -> None:
    host = Host()
    endpoint = await host.listener.start(host.handle)
    dialer = host.network.dialer()
    near = await dialer.dial(endpoint.address)
    await dialer.close()
    with pytest.raises(PeerUnreachable):
        await near.send(b"x")
    await host.listener.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
