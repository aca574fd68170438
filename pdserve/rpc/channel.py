"""Options that all channels and servers of the project share, in one place.

A connection that dies without a word (power, cable, firewall) is noticed by HTTP/2 pings within
``KEEPALIVE_S + KEEPALIVE_TIMEOUT_S``; servers allow pings that often. Every message has a limit on
both sides. Not covered: TLS.
"""

from __future__ import annotations

import grpc
import grpc.aio

KEEPALIVE_S = 10.0
KEEPALIVE_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 8 * 2**20
_MAX_METADATA_BYTES = 16 * 2**10
_HANDSHAKE_TIMEOUT_S = 10.0
_MAX_RECONNECT_BACKOFF_S = 2.0

Options = tuple[tuple[str, int | str], ...]


def common_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """What both ends set."""
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
    )


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    return (
        *common_options(max_message_bytes),
        # A proxy from the environment must not come between processes of one service.
        ("grpc.enable_http_proxy", 0),
        # Channels do not share connections: two clients of one process would otherwise wait for
        # each other behind one flow-control window, and one's end would be seen by the other.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", int(_MAX_RECONNECT_BACKOFF_S * 1000)),
    )


def server_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    return (
        *common_options(max_message_bytes),
        # Two servers on one port would each get a share of the calls; refuse the second instead.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_S * 500)),
        # Whoever connects and says nothing is cut off.
        ("grpc.server_handshake_timeout_ms", int(_HANDSHAKE_TIMEOUT_S * 1000)),
    )


def open_channel(address: str, max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel on the running loop; connects when it is first used. The caller closes it."""
    return grpc.aio.insecure_channel(address, options=channel_options(max_message_bytes))


def open_sync_channel(address: str, max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.Channel:
    """The same for programs without an event loop."""
    return grpc.insecure_channel(address, options=channel_options(max_message_bytes))
