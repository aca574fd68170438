from dataclasses import replace

import pytest

from kvtransfer.config import MIB, TRANSPORTS, TransferConfig
from pdserve.config import option_fields
from pdserve.errors import ConfigError
from pdserve.types import KVLayout


def test_every_option_has_help_and_a_unit() -> None:
    for field in option_fields(TransferConfig):
        assert field.option.help
        plain = field.name in ("read_back", "kv_transports", "kv_in_flight")
        assert field.option.unit in ("bytes", "s") or plain, field.name


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        ("auto", ["shm", "tcp", "ray", "grpc"]),
        ("grpc", ["grpc"]),
        ("tcp, shm", ["shm", "tcp"]),
        ("nixl,grpc", ["nixl", "grpc"]),
    ],
)
def test_which_transports_are_allowed(names: str, allowed: list[str]) -> None:
    config = TransferConfig(kv_transports=names)
    assert [name for name in TRANSPORTS if config.allows(name)] == allowed


@pytest.mark.parametrize("names", ["", "rdma", "grpc,rdma"])
def test_an_unknown_transport_is_refused_by_name(names: str) -> None:
    with pytest.raises(ConfigError, match=r"kv_transports: .* none of shm, nixl, tcp, ray, grpc"):
        TransferConfig(kv_transports=names).allows("grpc")


def test_a_reader_waits_longer_than_a_holder() -> None:
    config = TransferConfig()
    assert config.ready_timeout_s > config.open_timeout_s


def test_a_message_holds_a_frame_or_one_block() -> None:
    small = KVLayout(30, 3, 64, 16, "float32")
    large = replace(small, block_size=1024)
    config = TransferConfig()
    assert config.max_message_bytes(small) == 5 * MIB
    assert config.max_message_bytes(large) == large.block_bytes + MIB
