"""Where a listener over TCP listens, and what decode workers are told of it.

Knows no sockets. IPv6 hosts are in brackets, as in URLs.
"""

from __future__ import annotations

from pdserve.errors import ConfigError
from pdserve.log import event_log

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "")
_EVERY_ADDRESS = ("0.0.0.0", "[::]", "::")

_log = event_log(__name__)


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of ``host:port``. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not host:port")
    return host, int(port)


def listen_address(option: str, listen: str, advertise: str) -> tuple[str, int]:
    """(host, port) to listen on, which must be known to those who dial: port 99999 would be bound
    as 34463.

    Raises:
        ConfigError: it is no address, or listens everywhere and no address is told.
    """
    try:
        host, port = split_address(listen)
    except ConfigError:
        raise ConfigError(f"{option} must be host:port, not {listen!r}") from None
    if advertise != "".join(advertise.split()) or (
        _has_port(advertise) and int(advertise.rpartition(":")[2]) > 65535
    ):
        raise ConfigError(f"advertise must be host or host:port, not {advertise!r}")
    if host in _EVERY_ADDRESS and not advertise:
        raise ConfigError(
            f"advertise must be given with {option} {listen}: no decode worker can dial {host}"
        ).advise("add --advertise with this host's address as decode workers know it")
    return host, port


def told_address(host: str, port: int, advertise: str) -> str:
    """``advertise`` (host or host:port) instead of the host listened on, if given."""
    if not advertise:
        return f"{host}:{port}"
    return advertise if _has_port(advertise) else f"{advertise}:{port}"


def host_of(advertise: str) -> str:
    """``advertise`` without its port, if it has one."""
    return advertise.rpartition(":")[0] if _has_port(advertise) else advertise


def warn_beyond_loopback(transport: str, host: str, port: int) -> None:
    if host not in _LOOPBACK:
        _log.warning(
            "kv_listener_beyond_loopback",
            transport=transport,
            address=f"{host}:{port}",
            tls="off",
            next="no authentication: let only trusted peers reach this port",
        )


def _has_port(advertise: str) -> bool:
    return advertise.rpartition(":")[2].isdigit() and ":" in advertise
