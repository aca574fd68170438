"""What only tcp has: payloads sent out of pinned blocks, and a port that may be shut."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from kvtransfer.codec import decode
from kvtransfer.config import TransferConfig
from kvtransfer.importer import SHUN_S, Importer
from kvtransfer.messages import Accept, Frame, Open, Refused
from kvtransfer.transports.base import Connection
from kvtransfer.transports.tcp import TcpDialer
from pdserve.clock import ManualClock
from pdserve.errors import PeerUnreachable
from pdserve.types import Endpoint, TransferTicket, WorkerId
from support.kv_faults import Talker
from support.kv_pair import LAYOUT, KvPair, kv_pair, until

LARGE = replace(LAYOUT, block_size=48 * 4096 * 4)  # a frame is one block at least
BLOCK = LARGE.block_bytes  # 48 MiB: more than a socket holds at either end
NUM_BLOCKS = 1
WHOLE = TransferConfig(credit_bytes=BLOCK, farewell_timeout_s=0.05)


async def _opened(
    pair: KvPair, dialer: TcpDialer, ticket: TransferTicket
) -> tuple[Connection, Frame]:
    """A reader that has got the first frame's message and takes nothing of its payload."""
    connection = await dialer.dial(pair.endpoint.address)
    reader = Talker(connection)
    await reader.say(Open(ticket.ticket_id, ticket.epoch, WorkerId("d"), "b", ticket.layout))
    await reader.hear()
    await reader.say(Accept(0, BLOCK))
    frame = decode(await connection.receive(), apart=True)
    assert isinstance(frame, Frame)
    return connection, frame


async def test_blocks_are_pinned_while_they_are_sent_and_come_back_from_a_stuck_reader() -> None:
    dialer = TcpDialer()
    async with kv_pair("tcp", config=WHOLE, layout=LARGE, num_blocks=NUM_BLOCKS) as pair:
        ticket = pair.ticket(NUM_BLOCKS * LARGE.block_size)
        export = pair.offer_computed(ticket)
        connection, frame = await _opened(pair, dialer, ticket)
        assert frame.payload_len == BLOCK
        export.close("ticket_unknown", "cancelled")
        pair.release_holder()
        assert pair.holder_pool.num_free == 0  # the payload still goes out of them
        await until(lambda: pair.holder_pool.num_free == NUM_BLOCKS)
        out = bytearray(frame.payload_len)
        assert connection.lane is not None
        with pytest.raises(PeerUnreachable):
            await connection.lane.receive_into([memoryview(out)])
        await dialer.close()


async def test_a_reader_cut_amid_a_payload_gets_the_rest_and_the_reason() -> None:
    dialer = TcpDialer()
    config = replace(WHOLE, farewell_timeout_s=10.0)
    async with kv_pair("tcp", config=config, layout=LARGE, num_blocks=NUM_BLOCKS) as pair:
        ticket = pair.ticket(NUM_BLOCKS * LARGE.block_size)
        export = pair.offer_computed(ticket)
        connection, frame = await _opened(pair, dialer, ticket)
        export.close("ticket_unknown", "cancelled")
        out = bytearray(frame.payload_len)
        assert connection.lane is not None
        await connection.lane.receive_into([memoryview(out)])
        assert out == b"".join(pair.source.contents(pair.leases[0]))  # type: ignore[arg-type]
        assert await Talker(connection).hear() == Refused("ticket_unknown", "cancelled")
        await dialer.close()


@pytest.mark.parametrize("end", ["reader", "holder"])
async def test_an_end_that_goes_amid_a_payload(end: str) -> None:
    """The other one learns of it, and blocks come back."""
    dialer = TcpDialer()
    async with kv_pair("tcp", config=WHOLE, layout=LARGE, num_blocks=NUM_BLOCKS) as pair:
        ticket = pair.ticket(NUM_BLOCKS * LARGE.block_size)
        export = pair.offer_computed(ticket)
        connection, frame = await _opened(pair, dialer, ticket)
        if end == "reader":
            await connection.close()
            await until(lambda: export.is_held)
        else:
            await pair.exporter.close()
            out = bytearray(frame.payload_len)
            assert connection.lane is not None
            with pytest.raises(PeerUnreachable):
                await connection.lane.receive_into([memoryview(out)])
        pair.release_holder()
        await until(lambda: pair.holder_pool.num_free == NUM_BLOCKS)
        await dialer.close()


async def test_a_reader_cancelled_while_a_payload_comes_gives_its_blocks_back() -> None:
    async with kv_pair("tcp", config=WHOLE, layout=LARGE, num_blocks=NUM_BLOCKS) as pair:
        ticket = pair.ticket(NUM_BLOCKS * LARGE.block_size)
        export = pair.offer_computed(ticket)
        reading = pair.redeem(ticket)
        await until(lambda: pair.intake.bytes_taken > 0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert pair.reader_pool.num_free == NUM_BLOCKS
        await until(lambda: export.is_held)


async def test_a_message_beyond_the_limit_breaks_the_connection() -> None:
    async with kv_pair("tcp") as pair:
        host, _, port = pair.endpoint.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\xff\xff\xff\xff")
        assert await reader.read() == b""
        writer.close()
        await until(lambda: pair.exporter.num_connections == 0)


@dataclass
class ShutPort:
    """A dialer that reaches nobody."""

    num_dials: int = 0

    async def dial(self, address: str) -> Connection:
        self.num_dials += 1
        raise PeerUnreachable(f"tcp {address}: refused")

    async def close(self) -> None:
        """Nothing is open."""


async def test_a_port_that_is_shut_is_tried_once_a_minute_and_the_next_is_used() -> None:
    shut, clock = ShutPort(), ManualClock()

    async with kv_pair("grpc") as pair:
        importer = Importer(
            pair.target, clock, pair.config, WorkerId("d"), "b",
            {"tcp": shut, **pair.importer.dialers},
        )  # fmt: skip
        shut_endpoint = Endpoint("tcp", "127.0.0.1:1")
        for num_dials in (1, 1, 2):
            ticket = pair.ticket(9, endpoints=(shut_endpoint, pair.endpoint))
            export = pair.offer_computed(ticket)
            imported = await importer.redeem(ticket, pair.make_room, pair.intake)
            assert imported.timing.transport == "grpc"
            assert imported.timing.passed_over == "tcp"  # tried or not
            assert shut.num_dials == num_dials
            pair.take(imported, export)
            clock.advance(0.6 * SHUN_S)
        await importer.close()
