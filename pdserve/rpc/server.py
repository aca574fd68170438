"""A gRPC server on the running loop: our services, grpc.health.v1, and reflection for public ones.

Health knows every service by its full name, and "" for the whole; all say NOT_SERVING until
``set_serving``. This module does not know what the services do. Not covered: TLS; a bind beyond
loopback is therefore warned about.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pdserve.errors import ConfigError
from pdserve.log import event_log
from pdserve.rpc.channel import MAX_MESSAGE_BYTES, server_options

_log = event_log(__name__)


class GrpcService(Protocol):
    """What the server hosts."""

    @property
    def name(self) -> str:
        """Full name, as in the proto: "pdserve.v1.InferenceService"."""

    @property
    def is_public(self) -> bool:
        """Whether reflection shows it."""

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """By method name."""

    async def close(self) -> None:
        """End what is open; called once, before the server stops."""


class GrpcServer:
    """Listens from ``start`` to ``stop``."""

    def __init__(
        self,
        listen: str,
        services: Sequence[GrpcService],
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """``listen`` is host:port; port 0 takes any free one."""
        self._listen = listen
        self._services = tuple(services)
        self._options = server_options(max_message_bytes)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port that was bound; 0 before ``start``."""
        return self._port

    async def start(self) -> None:
        """Raises ConfigError if the address cannot be bound."""
        server = grpc.aio.server(options=self._options)
        for service in self._services:
            handler = grpc.method_handlers_generic_handler(service.name, service.handlers())
            server.add_generic_rpc_handlers((handler,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if public := [service.name for service in self._services if service.is_public]:
            names = (*public, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        try:
            self._port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise ConfigError(f"listen: cannot bind {self._listen}: {error}").advise(
                "another process has this port, or the address is not this host's; `pdserve doctor`"
                " tells which. Choose another with --grpc-port, --worker-port or --listen"
            ) from error
        self._server = server
        await self.set_serving(False)
        await server.start()
        if not is_loopback(self._listen):
            _log.warning(
                "grpc_listens_beyond_loopback",
                address=f"{self._listen.rpartition(':')[0]}:{self._port}",
                tls="off",
                next="no authentication: let only trusted peers reach this port",
            )

    async def set_serving(self, serving: bool) -> None:
        """What health checks are told from now on, for every service and for the whole."""
        answer = health_pb2.HealthCheckResponse
        status = answer.SERVING if serving else answer.NOT_SERVING
        for name in ("", *(service.name for service in self._services)):
            await self._health.set(name, status)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no more calls, let those that run finish within ``grace_s``, then cut them.

        Sessions of workers are closed at once: they would never finish by themselves.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        await self._health.enter_graceful_shutdown()
        for service in self._services:
            await service.close()
        await server.stop(grace_s or None)


def is_loopback(listen: str) -> bool:
    """Whether an address like "127.0.0.1:9000" or "[::1]:0" can only be reached from this host."""
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost" or listen.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
