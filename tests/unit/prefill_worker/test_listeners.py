"""What a prefill worker offers for its options."""

from __future__ import annotations

import sys

import pytest

from kvtransfer.config import TransferConfig
from kvtransfer.transports.base import Connection, Listener
from pdserve.errors import ConfigError
from prefill_worker.config import PrefillConfig
from prefill_worker.listeners import own_listeners
from support.kv_pair import LAYOUT, ByteBuffers
from support.staged import GatedCopier, StagedBuffers

_BYTES = ByteBuffers(LAYOUT, 2, seed=0)
UNSEEN = StagedBuffers(_BYTES, GatedCopier(_BYTES))  # memory that nobody else can map


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
    assert await _endpoints(own_listeners(config, UNSEEN)) == wanted


async def test_memory_that_can_be_mapped_is_offered_first() -> None:
    buffers = ByteBuffers(LAYOUT, 2, seed=0)
    names = [name for name, _ in await _endpoints(own_listeners(PrefillConfig(), buffers))]
    assert names == ["shm", "tcp", "grpc"]


@pytest.mark.parametrize("advertise", ["", "p:9200"])
async def test_nixl_is_left_out_where_it_cannot_be_used(
    advertise: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    config = PrefillConfig(advertise=advertise, transfer=TransferConfig(kv_transports="nixl,grpc"))
    listeners = own_listeners(config, ByteBuffers(LAYOUT, 2, seed=0))
    assert [name for name, _ in await _endpoints(listeners)] == ["grpc"]
    assert "kv_transport_left_out" in caplog.text
    alone = PrefillConfig(transfer=TransferConfig(kv_transports="nixl"))
    with pytest.raises(ConfigError, match="none of nixl"):
        own_listeners(alone, UNSEEN)


def test_nothing_to_offer_is_refused() -> None:
    config = PrefillConfig(transfer=TransferConfig(kv_transports="shm"))
    with pytest.raises(ConfigError, match="kv_transports: this worker has none of shm"):
        own_listeners(config, UNSEEN)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (PrefillConfig(listen="127.0.0.1:99999"), "listen must be host:port"),
        (PrefillConfig(listen="nonsense"), "listen must be host:port"),
        (PrefillConfig(stream_listen="127.0.0.1:99999"), "stream_listen must be host:port"),
        (PrefillConfig(advertise="a b"), "advertise must be host or host:port"),
        (PrefillConfig(advertise="p:99999"), "advertise must be host or host:port"),
    ],
)
async def test_what_is_no_address_is_refused(config: PrefillConfig, problem: str) -> None:
    """gRPC would take port 99999 for 34463, and decode workers would be told of it."""
    with pytest.raises(ConfigError, match=problem):
        await own_listeners(config, UNSEEN)[-1 if problem.startswith("listen") else 0].start(
            _nothing
        )


async def test_a_port_in_use_is_refused_by_the_options_name() -> None:
    first = own_listeners(PrefillConfig(), UNSEEN)
    endpoint = await first[0].start(_nothing)
    second = own_listeners(PrefillConfig(stream_listen=endpoint.address), UNSEEN)
    with pytest.raises(ConfigError, match="stream_listen: cannot bind"):
        await second[0].start(_nothing)
    await first[0].close()
