"""When a request began, from the Python client's option to what the service is told."""

from __future__ import annotations

import asyncio
import time

import pytest

from pdserve.rpc.inference_server import InferenceServer
from router.client import AsyncClient, GenerateOptions
from support.grpc_hosts import grpc_server
from support.scripted_backend import ScriptedBackend


@pytest.mark.parametrize("stated", [True, False])
async def test_the_wait_in_front_is_what_metadata_states(stated: bool) -> None:
    backend = ScriptedBackend()
    began: GenerateOptions = {"began_unix_s": time.time() - 60} if stated else {}
    async with (
        asyncio.timeout(20),
        grpc_server(InferenceServer(backend)) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        async for _delta in client.generate("Hi", **began):
            pass
    assert (backend.arrivals[0].before_face_s > 59) is stated
