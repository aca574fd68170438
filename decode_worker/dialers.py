"""By what a decode worker can read KV, made from its options."""

from __future__ import annotations

from kvtransfer.config import TransferConfig
from kvtransfer.transports.base import Dialer
from kvtransfer.transports.grpc import GrpcDialer
from kvtransfer.transports.shm import ShmDialer
from kvtransfer.transports.tcp import TcpDialer
from pdserve.errors import ConfigError
from pdserve.log import event_log
from pdserve.types import KVLayout

_log = event_log(__name__)


def own_dialers(
    config: TransferConfig, layout: KVLayout, over_ray: Dialer | None = None
) -> dict[str, Dialer]:
    """By transport name. ``over_ray``: its host's. Raises ConfigError as ``allows``.

    NIXL where it is asked for and cannot be used is left out, with a line that says why.
    """
    every: dict[str, Dialer] = {
        "shm": ShmDialer(),
        "tcp": TcpDialer(),
        "grpc": GrpcDialer(config.max_message_bytes(layout)),
    }
    if over_ray is not None:
        every["ray"] = over_ray
    if config.allows("nixl") and (over_nixl := _nixl_dialer()):
        every["nixl"] = over_nixl
    return {name: dialer for name, dialer in every.items() if config.allows(name)}


def _nixl_dialer() -> Dialer | None:
    from kvtransfer.transports.nixl import NixlDialer

    try:
        return NixlDialer()
    except ConfigError as error:
        _log.warning("kv_transport_left_out", transport="nixl", error=error)
        return None
