"""By what a decode worker can read KV, made from its options."""

from __future__ import annotations

from kvtransfer.config import TransferConfig
from kvtransfer.transports.base import Dialer
from kvtransfer.transports.grpc import GrpcDialer
from kvtransfer.transports.shm import ShmDialer
from kvtransfer.transports.tcp import TcpDialer
from pdserve.types import KVLayout


def own_dialers(config: TransferConfig, layout: KVLayout) -> dict[str, Dialer]:
    """By transport name. Raises ConfigError as ``TransferConfig.allows``."""
    every: dict[str, Dialer] = {
        "shm": ShmDialer(),
        "tcp": TcpDialer(),
        "grpc": GrpcDialer(config.max_message_bytes(layout)),
    }
    return {name: dialer for name, dialer in every.items() if config.allows(name)}
