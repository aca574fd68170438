"""KV reads over gRPC: the bidirectional stream ``pdserve.v1.KvTransferService.Read``.

Messages pass through unserialised (proto/pdserve/v1/kv_transfer_service.proto says what they are).
The one place that knows gRPC's errors on this road: all become PeerUnreachable. One channel an
address, shared by its reads. Not covered: TLS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from kvtransfer.config import MIB
from kvtransfer.transports.addresses import listen_address, told_address, warn_beyond_loopback
from kvtransfer.transports.base import Handler
from pdserve.errors import ConfigError, PeerUnreachable
from pdserve.freed_memory import keep_freed_memory
from pdserve.rpc.channel import open_channel, server_options
from pdserve.types import Endpoint

TRANSPORT = "grpc"
SERVICE = "pdserve.v1.KvTransferService"
METHOD = "Read"
DEFAULT_MESSAGE_BYTES = 5 * MIB
_MAX_READER_MESSAGE_BYTES = MIB  # readers send headers only


class GrpcListener:
    """Serves reads at ``listen`` (host:port, port 0: any free one).

    ``advertise`` (host or host:port) is what the endpoint says instead of the address listened on.
    """

    def __init__(self, listen: str = "127.0.0.1:0", advertise: str = "") -> None:
        self._listen = listen
        self._advertise = advertise
        self._server: grpc.aio.Server | None = None
        self._handling: set[asyncio.Task[None]] = set()
        self._port = 0

    @property
    def port(self) -> int:
        """The port bound, once started."""
        return self._port

    async def start(self, handler: Handler) -> Endpoint:
        """Raises ConfigError if the address cannot be bound."""

        async def read(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._handling.add(task)
            keep_freed_memory()
            try:
                await handler(GrpcServerConnection(context))
            finally:
                self._handling.discard(task)

        host, _ = listen_address("listen", self._listen, self._advertise)
        options = {
            **dict(server_options(_MAX_READER_MESSAGE_BYTES)),
            "grpc.max_send_message_length": -1,  # the reader's limit decides
        }
        server = grpc.aio.server(options=list(options.items()))
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(read)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),)
        )
        try:
            port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise ConfigError(f"listen: cannot bind {self._listen}: {error}").advise(
                "another process has this port, or the address is not this host's; choose another"
                " with --listen (port 0: any free one)"
            ) from error
        await server.start()
        self._server = server
        self._port = port
        warn_beyond_loopback(TRANSPORT, host, port)
        return Endpoint(TRANSPORT, told_address(host, port, self._advertise))

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace=None)  # cancels the handlers, does not wait for them
            if self._handling:
                await asyncio.wait(set(self._handling))


class GrpcDialer:
    """Dials readers' connections. ``max_message_bytes``: see TransferConfig.max_message_bytes."""

    def __init__(self, max_message_bytes: int = DEFAULT_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def num_channels(self) -> int:
        return len(self._channels)

    async def dial(self, address: str) -> GrpcClientConnection:
        channel = self._channels.get(address)
        if channel is None:
            channel = open_channel(address, self._max_message_bytes)
            self._channels[address] = channel
        with _translated(address):
            connected = await _is_connected(channel)
        if not connected:
            # A later dial starts afresh instead of waiting out this channel's back-off.
            if self._channels.get(address) is channel:
                del self._channels[address]
            await channel.close()
            raise PeerUnreachable(f"grpc {address}: cannot connect")
        keep_freed_memory()  # here and not at the start: most reads go another way
        stub: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/{SERVICE}/{METHOD}"
        )
        return GrpcClientConnection(address, stub())

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


class GrpcClientConnection:
    """The reader's end. Cancelling a pending read or write cancels the call at once."""

    window = None
    lane = None

    def __init__(self, address: str, call: Any) -> None:
        self._address = address
        self._call = call

    @property
    def peer(self) -> str:
        return self._address

    async def send(self, data: bytes) -> None:
        with _translated(self.peer):
            await self._call.write(data)

    async def receive(self) -> bytes:
        with _translated(self.peer):
            data = await self._call.read()
        return _message(data, self.peer)

    async def close(self) -> None:
        self._call.cancel()


class GrpcServerConnection:
    """The holder's end; the stream ends when the handler returns."""

    window = None
    lane = None

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context
        self._closed = False
        self._peer = context.peer()  # once: grpcio crashes if it is asked after the stream's end

    @property
    def peer(self) -> str:
        return self._peer

    async def send(self, data: bytes) -> None:
        self._refuse_if_closed()
        with _translated(self.peer):
            await self._context.write(data)

    async def receive(self) -> bytes:
        self._refuse_if_closed()
        with _translated(self.peer):
            data = await self._context.read()
        return _message(data, self.peer)

    async def close(self) -> None:
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise PeerUnreachable(f"grpc {self.peer}: closed")


async def _is_connected(channel: grpc.aio.Channel) -> bool:
    """Wait until the channel is ready or has failed once."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
            grpc.ChannelConnectivity.SHUTDOWN,
        ):
            return False
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return True


def _message(data: object, peer: str) -> bytes:
    if not isinstance(data, bytes):  # grpc.aio.EOF
        raise PeerUnreachable(f"grpc {peer}: stream ended")
    return data


@contextmanager
def _translated(peer: str) -> Iterator[None]:
    """gRPC's ways to say that a stream is over, as PeerUnreachable."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise PeerUnreachable(f"grpc {peer}: {error.code().name}: {error.details()}") from error
    except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
        raise PeerUnreachable(f"grpc {peer}: {error}") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Not this task but the call was cancelled: by close, or by the channel's end.
        raise PeerUnreachable(f"grpc {peer}: call cancelled") from None
