"""By what a prefill worker's KV can be read, made from its options; fastest first.

A decode worker takes the first one it can reach, so the order is the choice. Does not know which
one a reader will take.
"""

from __future__ import annotations

from kvtransfer.store import BlockBuffers
from kvtransfer.transports.addresses import host_of
from kvtransfer.transports.base import Listener
from kvtransfer.transports.shm import ShmListener
from kvtransfer.transports.tcp import TcpListener
from pdserve.errors import ConfigError
from pdserve.log import event_log
from prefill_worker.config import PrefillConfig

_log = event_log(__name__)


def own_listeners(
    config: PrefillConfig, buffers: BlockBuffers, over_ray: Listener | None = None
) -> list[Listener]:
    """``buffers``: what they may show of the block pool's memory. ``over_ray``: its host's.

    Raises ConfigError: nothing is left to offer.
    """
    from kvtransfer.transports.grpc import GrpcListener

    allows = config.transfer.allows
    listeners: list[Listener] = []
    if allows("shm") and buffers.memory_fd is not None:
        listeners.append(ShmListener(buffers.memory_fd))
    if allows("nixl") and (over_nixl := _nixl_listener(config, buffers)):
        listeners.append(over_nixl)
    if allows("tcp") and (stream_listen := _stream_listen(config)):
        listeners.append(TcpListener(stream_listen, host_of(config.advertise)))
    if allows("ray") and over_ray is not None:
        listeners.append(over_ray)
    if allows("grpc"):
        listeners.append(GrpcListener(config.listen, config.advertise))
    if not listeners:
        raise ConfigError(f"kv_transports: this worker has none of {config.transfer.kv_transports}")
    return listeners


def _nixl_listener(config: PrefillConfig, buffers: BlockBuffers) -> Listener | None:
    """None, and a line why: NIXL or this pool cannot be used, the other transports are offered."""
    from kvtransfer.transports.nixl import NixlListener, pool_memory

    try:
        if host_of(config.advertise) != config.advertise:
            raise ConfigError("KV transport nixl: --advertise names a forwarded port")
        listen = config.listen.rpartition(":")[0] + ":0"
        return NixlListener(pool_memory(buffers), listen, config.advertise)
    except ConfigError as error:
        _log.warning("kv_transport_left_out", transport="nixl", error=error)
        return None


def _stream_listen(config: PrefillConfig) -> str:
    """Empty: none, since an advertised port is forwarded and nobody forwards one we choose."""
    if config.stream_listen:
        return config.stream_listen
    if host_of(config.advertise) != config.advertise:
        return ""
    return config.listen.rpartition(":")[0] + ":0"
