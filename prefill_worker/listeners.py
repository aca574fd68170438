"""By what a prefill worker's KV can be read, made from its options; fastest first.

A decode worker takes the first one it can reach, so the order is the choice. Does not know which
one a reader will take.
"""

from __future__ import annotations

from kvtransfer.transports.addresses import host_of
from kvtransfer.transports.base import Listener
from kvtransfer.transports.shm import ShmListener
from kvtransfer.transports.tcp import TcpListener
from pdserve.errors import ConfigError
from prefill_worker.config import PrefillConfig


def own_listeners(
    config: PrefillConfig, memory_fd: int | None, over_ray: Listener | None = None
) -> list[Listener]:
    """``memory_fd``: of the block pool, None if others cannot map it. ``over_ray``: its host's.

    Raises ConfigError: nothing is left to offer.
    """
    from kvtransfer.transports.grpc import GrpcListener

    allows = config.transfer.allows
    listeners: list[Listener] = []
    if allows("shm") and memory_fd is not None:
        listeners.append(ShmListener(memory_fd))
    if allows("tcp") and (stream_listen := _stream_listen(config)):
        listeners.append(TcpListener(stream_listen, host_of(config.advertise)))
    if allows("ray") and over_ray is not None:
        listeners.append(over_ray)
    if allows("grpc"):
        listeners.append(GrpcListener(config.listen, config.advertise))
    if not listeners:
        raise ConfigError(f"kv_transports: this worker has none of {config.transfer.kv_transports}")
    return listeners


def _stream_listen(config: PrefillConfig) -> str:
    """Empty: none, since an advertised port is forwarded and nobody forwards one we choose."""
    if config.stream_listen:
        return config.stream_listen
    if host_of(config.advertise) != config.advertise:
        return ""
    return config.listen.rpartition(":")[0] + ":0"
