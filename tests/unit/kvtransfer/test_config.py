from dataclasses import replace

from kvtransfer.config import MIB, TransferConfig
from pdserve.config import option_fields
from pdserve.types import KVLayout


def test_every_option_has_help_and_a_unit() -> None:
    for field in option_fields(TransferConfig):
        assert field.option.help
        assert field.option.unit in ("bytes", "s") or field.name == "read_back", field.name


def test_a_reader_waits_longer_than_a_holder() -> None:
    config = TransferConfig()
    assert config.ready_timeout_s > config.open_timeout_s


def test_a_message_holds_a_frame_or_one_block() -> None:
    small = KVLayout(30, 3, 64, 16, "float32")
    large = replace(small, block_size=1024)
    config = TransferConfig()
    assert config.max_message_bytes(small) == 5 * MIB
    assert config.max_message_bytes(large) == large.block_bytes + MIB
