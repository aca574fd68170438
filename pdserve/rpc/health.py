"""Waiting for a service to be able to serve, by the health protocol's Watch: no polling."""

from __future__ import annotations

import asyncio

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pdserve.errors import PeerSilent, PeerUnreachable
from pdserve.rpc.channel import open_channel


async def wait_serving(target: str, timeout_s: float, *, service: str = "") -> None:
    """Return once ``service`` (by default the whole server) at host:port says SERVING.

    Raises:
        PeerSilent: it did not say so in time.
        PeerUnreachable: there is no such server, or it went away.
    """
    channel = open_channel(target)
    request = health_pb2.HealthCheckRequest(service=service)
    call = health_pb2_grpc.HealthStub(channel).Watch(request, wait_for_ready=True)
    try:
        async with asyncio.timeout(timeout_s):
            async for answer in call:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        raise PeerUnreachable(f"{target} went away before it could serve")
    except TimeoutError:
        raise PeerSilent(f"{target} cannot serve after {timeout_s:g} s") from None
    except grpc.aio.AioRpcError as error:
        raise PeerUnreachable(f"{target}: {error.details()}") from error
    finally:
        call.cancel()
        await channel.close()
