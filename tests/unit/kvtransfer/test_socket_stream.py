"""Messages and ends of conversations as the bytes on a socket, however they are cut."""

from __future__ import annotations

import asyncio
import struct
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.transports.kept_sockets import MOST_IDLE, KeptSockets
from kvtransfer.transports.socket_stream import (
    END_MARK,
    READ_AHEAD_BYTES,
    MessageSocket,
    SocketConnection,
)
from pdserve.errors import PeerUnreachable

LIMIT = 4 * READ_AHEAD_BYTES
END = struct.pack("<I", END_MARK)


def framed(message: bytes) -> bytes:
    return struct.pack("<I", len(message)) + message


class StandInTransport:
    """What a MessageSocket needs of one."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_reading = True
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def dialled(**options: object) -> tuple[MessageSocket, StandInTransport]:
    socket, transport = MessageSocket(LIMIT, **options), StandInTransport()  # type: ignore[arg-type]
    socket.connection_made(cast(asyncio.Transport, transport))
    return socket, transport


async def test_a_conversation_after_another() -> None:
    idle: list[MessageSocket] = []
    socket, transport = dialled(on_idle=idle.append)
    for number in range(3):
        connection = SocketConnection("peer", socket)
        await connection.send(b"%d" % number)
        socket.data_received(framed(b"a") + framed(b"b") + END)
        assert await connection.receive() == b"a"
        await connection.close()  # what was not read goes with it
        assert idle == [socket] * (number + 1)
        with pytest.raises(PeerUnreachable):
            await connection.receive()
    sent = b"".join(framed(b"%d" % number) + END for number in range(3))
    assert (bytes(transport.written), transport.aborted) == (sent, False)


async def test_whoever_dialled_and_leaves_first_ends_the_socket() -> None:
    idle: list[MessageSocket] = []
    socket, transport = dialled(on_idle=idle.append)
    connection = SocketConnection("peer", socket)
    await connection.send(b"x")
    await connection.close()
    assert transport.aborted and not idle
    assert bytes(transport.written) == framed(b"x")


async def test_a_listener_drops_what_comes_of_a_conversation_it_has_left() -> None:
    socket, transport = dialled(on_connected=lambda accepted: None)
    connection = SocketConnection("peer", socket)
    socket.data_received(framed(b"first"))
    assert await connection.receive() == b"first"
    await connection.close()
    socket.data_received(framed(b"late") + framed(b"later") + END + framed(b"next"))
    assert await socket.next_begins()
    assert await SocketConnection("peer", socket).receive() == b"next"
    assert not transport.aborted


async def test_a_sender_that_waits_learns_of_the_end() -> None:
    socket, transport = dialled()
    connection = SocketConnection("peer", socket)
    socket.pause_writing()
    sending = asyncio.create_task(connection.send(b"x"))
    await asyncio.sleep(0)
    assert not sending.done()
    socket.data_received(END)
    with pytest.raises(PeerUnreachable):
        await sending
    await connection.close()  # the far end has not taken all: nothing may follow on this socket
    assert transport.aborted


@pytest.mark.parametrize(
    "data",
    [
        END + framed(b"after the end"),
        END + END,
        struct.pack("<I", LIMIT + 1),
    ],
)
async def test_what_makes_no_sense_ends_the_socket(data: bytes) -> None:
    socket, transport = dialled()
    connection = SocketConnection("peer", socket)
    socket.data_received(framed(b"x") + data)
    assert transport.aborted
    assert await connection.receive() == b"x"
    with pytest.raises(PeerUnreachable):
        await connection.receive()


async def test_an_idle_socket_that_is_spoken_to_ends() -> None:
    socket, transport = dialled()
    socket.data_received(framed(b"x"))
    assert transport.aborted


async def test_the_far_end_waits_for_one_who_does_not_read() -> None:
    socket, transport = dialled()
    connection = SocketConnection("peer", socket)
    large = bytes(READ_AHEAD_BYTES)
    socket.data_received(framed(large))
    assert transport.is_reading
    socket.data_received(framed(b"x"))
    assert not transport.is_reading
    assert await connection.receive() == large
    assert transport.is_reading


CONVERSATIONS = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), max_size=5)


@given(CONVERSATIONS, st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_bytes_may_be_cut_anywhere(conversations: list[list[bytes]], cuts: list[int]) -> None:
    """What a listener hears, one conversation after another."""

    async def listen(socket: MessageSocket) -> list[list[bytes]]:
        heard: list[list[bytes]] = []
        while await socket.next_begins():
            connection = SocketConnection("peer", socket)
            heard.append([])
            try:
                while True:
                    heard[-1].append(await connection.receive())
            except PeerUnreachable:
                await connection.close()
        return heard

    async def run() -> list[list[bytes]]:
        socket, _ = dialled(on_connected=lambda accepted: None)
        listening = asyncio.create_task(listen(socket))
        number = 0
        for messages in conversations:
            data = b"".join(framed(message) for message in messages) + END
            while data:  # the next one begins when both sides have ended this one
                size, number = cuts[number % len(cuts)], number + 1
                socket.data_received(data[:size])
                data = data[size:]
                for _ in range(3):
                    await asyncio.sleep(0)
        socket.connection_lost(None)
        return await listening

    assert asyncio.run(run()) == conversations


async def test_so_many_idle_sockets_are_kept() -> None:
    made: list[StandInTransport] = []

    async def connect(address: str, socket: MessageSocket) -> None:
        transport = StandInTransport()
        made.append(transport)
        socket.connection_made(cast(asyncio.Transport, transport))

    kept = KeptSockets(LIMIT, connect)
    sockets = [await kept.socket("a") for _ in range(MOST_IDLE + 1)]
    for socket in sockets:
        connection = SocketConnection("peer", socket)
        socket.data_received(END)
        await connection.close()
    assert [transport.aborted for transport in made] == [False] * MOST_IDLE + [True]
    assert await kept.socket("a") in sockets
    other = await kept.socket("b")
    assert other not in sockets
    sockets[0].connection_lost(None)  # its far end died
    assert sockets[0] not in [await kept.socket("a") for _ in range(MOST_IDLE)]
    kept.close()
    assert all(transport.aborted for transport in made[1:])
