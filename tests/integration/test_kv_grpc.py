"""What only the gRPC transport has: addresses, limits, processes that come and go."""

import asyncio
import socket
from dataclasses import replace

import pytest

from kvtransfer.config import TransferConfig
from kvtransfer.exporter import ExportOutcome
from kvtransfer.transports.base import Connection
from kvtransfer.transports.grpc import GrpcDialer, GrpcListener
from pdserve.errors import ConfigError, PeerUnreachable, TransferError
from support.kv_pair import LAYOUT, Carrier, kv_pair


async def echo(connection: Connection) -> None:
    while True:
        try:
            await connection.send(await connection.receive())
        except PeerUnreachable:
            return


@pytest.mark.parametrize(
    ("advertise", "expected"),
    [
        ("", "127.0.0.1:{port}"),
        ("worker-3.example", "worker-3.example:{port}"),
        ("worker-3.example:7000", "worker-3.example:7000"),
        ("[2001:db8::1]", "[2001:db8::1]:{port}"),
        ("[2001:db8::1]:7000", "[2001:db8::1]:7000"),
    ],
)
async def test_what_is_advertised(advertise: str, expected: str) -> None:
    listener = GrpcListener("127.0.0.1:0", advertise)
    endpoint = await listener.start(echo)
    assert endpoint.transport == "grpc"
    assert endpoint.address == expected.format(port=listener.port)
    await listener.close()


async def test_an_address_in_use_is_refused_by_name() -> None:
    first = GrpcListener("127.0.0.1:0")
    endpoint = await first.start(echo)
    with pytest.raises(ConfigError, match=f"cannot bind {endpoint.address}"):
        await GrpcListener(endpoint.address).start(echo)
    await first.close()


async def test_listening_beyond_loopback_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    listener = GrpcListener("0.0.0.0:0", "here")
    await listener.start(echo)
    assert "kv_listener_beyond_loopback" in caplog.text
    await listener.close()


async def test_every_address_is_none_that_others_can_dial() -> None:
    with pytest.raises(ConfigError, match="advertise must be given"):
        await GrpcListener("0.0.0.0:0").start(echo)


async def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        dialer = GrpcDialer()
        for _ in range(2):
            with pytest.raises(PeerUnreachable, match=str(port)):
                await dialer.dial(f"127.0.0.1:{port}")
        await dialer.close()


async def test_a_port_that_never_answers_is_given_up_in_time() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        address = "{}:{}".format(*deaf.getsockname())
        config = TransferConfig(open_timeout_s=0.05, ready_timeout_s=0.1)
        async with kv_pair("grpc", config=config) as pair:
            ticket = pair.ticket(4, endpoints=(replace(pair.endpoint, address=address),))
            with pytest.raises(TransferError) as caught:
                await pair.redeem(ticket)
            assert caught.value.code in ("peer_unreachable", "peer_silent")


async def test_reads_share_a_channel_and_close_ends_them_all() -> None:
    listener, dialer = GrpcListener(), GrpcDialer()
    endpoint = await listener.start(echo)
    first, second = [await dialer.dial(endpoint.address) for _ in range(2)]
    for connection in (first, second):
        await connection.send(b"x")
        assert await connection.receive() == b"x"
    assert dialer.num_channels == 1
    pending = asyncio.create_task(first.receive())
    await asyncio.sleep(0)
    await dialer.close()
    with pytest.raises(PeerUnreachable):
        await pending
    with pytest.raises(PeerUnreachable):
        await second.send(b"y")
    await listener.close()


async def test_closing_one_connection_leaves_the_other() -> None:
    listener, dialer = GrpcListener(), GrpcDialer()
    endpoint = await listener.start(echo)
    first, second = [await dialer.dial(endpoint.address) for _ in range(2)]
    await first.close()
    await first.close()
    with pytest.raises(PeerUnreachable):
        await first.receive()
    with pytest.raises(PeerUnreachable):
        await first.send(b"x")
    await second.send(b"x")
    assert await second.receive() == b"x"
    await dialer.close()
    await listener.close()


async def test_a_listener_that_closes_ends_its_connections() -> None:
    listener, dialer = GrpcListener(), GrpcDialer()
    endpoint = await listener.start(echo)
    connection = await dialer.dial(endpoint.address)
    await connection.send(b"x")
    assert await connection.receive() == b"x"
    await listener.close()
    with pytest.raises(PeerUnreachable):
        await connection.receive()
    with pytest.raises(PeerUnreachable):
        await dialer.dial(endpoint.address)
    await dialer.close()


async def test_another_listener_at_the_same_address_is_reached() -> None:
    """A worker restarted on its port: the old channel's back-off does not get in the way."""
    dialer = GrpcDialer()
    first = GrpcListener()
    endpoint = await first.start(echo)
    connection = await dialer.dial(endpoint.address)
    await first.close()
    with pytest.raises(PeerUnreachable):
        await connection.receive()
    with pytest.raises(PeerUnreachable):
        await dialer.dial(endpoint.address)
    second = GrpcListener(endpoint.address)
    await second.start(echo)
    connection = await dialer.dial(endpoint.address)
    await connection.send(b"x")
    assert await connection.receive() == b"x"
    await dialer.close()
    await second.close()


async def test_a_message_above_the_limit_breaks_the_connection() -> None:
    async def too_much(connection: Connection) -> None:
        await connection.send(bytes(2_000_000))

    listener, dialer = GrpcListener(), GrpcDialer(max_message_bytes=1_000_000)
    endpoint = await listener.start(too_much)
    connection = await dialer.dial(endpoint.address)
    with pytest.raises(PeerUnreachable, match="RESOURCE_EXHAUSTED"):
        await connection.receive()
    await dialer.close()
    await listener.close()


async def test_a_reader_that_sends_too_much_is_cut() -> None:
    async def fill(carrier: Carrier) -> None:
        connection = await carrier.dialer.dial(endpoint.address)
        with pytest.raises(PeerUnreachable):
            await connection.send(bytes(2_000_000))
            await connection.receive()

    carriers: list[Carrier] = []
    async with kv_pair("grpc", wrap=carriers.append) as pair:
        endpoint = pair.endpoint
        await fill(carriers[0])
        ticket = pair.ticket(4)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)


async def test_a_block_larger_than_a_frame_arrives() -> None:
    layout = replace(LAYOUT, num_layers=32, num_kv_heads=8, head_dim=128, block_size=32)
    assert layout.block_bytes > 5 << 20
    config = TransferConfig()

    def wrap(carrier: Carrier) -> None:
        carrier.dialer = GrpcDialer(config.max_message_bytes(layout))

    async with kv_pair("grpc", config=config, layout=layout, num_blocks=3, wrap=wrap) as pair:
        ticket = pair.ticket(70)
        export = pair.offer_computed(ticket)
        pair.take(await pair.redeem(ticket), export)
        assert await export.outcome() is ExportOutcome.ACKED
