"""What a prefill worker offers for its options."""

from __future__ import annotations

import os

import pytest

from kvtransfer.config import TransferConfig
from kvtransfer.transports.base import Connection, Listener
from pdserve.errors import ConfigError
from prefill_worker.config import PrefillConfig
from prefill_worker.listeners import own_listeners


async def _nothing(connection: Connection) -> None:
    """Nobody connects."""


async def _endpoints(listeners: list[Listener]) -> list[tuple[str, str]]:
    """(transport, host) of each, as a decode worker is told."""
    endpoints = [await listener.start(_nothing) for listener in listeners]
    for listener in listeners:
        await listener.close()
    return [(each.transport, each.address.rpartition(":")[0]) for each in endpoints]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (PrefillConfig(), [("tcp", "127.0.0.1"), ("grpc", "127.0.0.1")]),
        (PrefillConfig(advertise="p"), [("tcp", "p"), ("grpc", "p")]),
        # A forwarded port: nobody forwards the one that tcp would choose.
        (PrefillConfig(advertise="p:9200"), [("grpc", "p")]),
        (
            PrefillConfig(advertise="p:9200", stream_listen="127.0.0.1:0"),
            [("tcp", "p"), ("grpc", "p")],
        ),
        (PrefillConfig(transfer=TransferConfig(kv_transports="grpc")), [("grpc", "127.0.0.1")]),
    ],
)
async def test_what_is_offered(config: PrefillConfig, wanted: list[tuple[str, str]]) -> None:
    assert await _endpoints(own_listeners(config, None)) == wanted


async def test_memory_that_can_be_mapped_is_offered_first() -> None:
    fd = os.memfd_create("pdserve-kv-test")
    try:
        names = [name for name, _ in await _endpoints(own_listeners(PrefillConfig(), fd))]
    finally:
        os.close(fd)
    assert names == ["shm", "tcp", "grpc"]


def test_nothing_to_offer_is_refused() -> None:
    config = PrefillConfig(transfer=TransferConfig(kv_transports="shm"))
    with pytest.raises(ConfigError, match="kv_transports: this worker has none of shm"):
        own_listeners(config, None)


async def test_a_port_in_use_is_refused_by_the_options_name() -> None:
    first = own_listeners(PrefillConfig(), None)
    endpoint = await first[0].start(_nothing)
    second = own_listeners(PrefillConfig(stream_listen=endpoint.address), None)
    with pytest.raises(ConfigError, match="stream_listen: cannot bind"):
        await second[0].start(_nothing)
    await first[0].close()
