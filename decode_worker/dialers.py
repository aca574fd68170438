"""By what a decode worker can read KV, made from its options."""

from __future__ import annotations

from kvtransfer.config import TransferConfig
from kvtransfer.transports.base import Dialer
from kvtransfer.transports.grpc import GrpcDialer
from kvtransfer.transports.shm import ShmDialer
from kvtransfer.transports.tcp import TcpDialer
from pdserve.types import KVLayout


def own_dialers(
    config: TransferConfig, layout: KVLayout, over_ray: Dialer | None = None
) -> dict[str, Dialer]:
    """By transport name. ``over_ray``: its host's. Raises ConfigError as ``allows``."""
    every: dict[str, Dialer] = {
        "shm": ShmDialer(),
        "tcp": TcpDialer(),
        "grpc": GrpcDialer(config.max_message_bytes(layout)),
    }
    if over_ray is not None:
        every["ray"] = over_ray
    return {name: dialer for name, dialer in every.items() if config.allows(name)}
