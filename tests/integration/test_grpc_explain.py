"""Routing decisions over a real socket, by both Python clients."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.errors import InvalidRequest, UnknownDecision
from pdserve.rpc.inference_server import InferenceServer
from router.client import AsyncClient, Client
from support.grpc_hosts import grpc_server
from support.scripted_backend import DECISIONS, ScriptedBackend


async def test_routing_decisions_come_whole() -> None:
    async with asyncio.timeout(20), grpc_server(InferenceServer(ScriptedBackend())) as server:
        address = f"127.0.0.1:{server.port}"
        async with AsyncClient(address) as client:
            assert await client.explain("req-scripted") == DECISIONS
            with pytest.raises(UnknownDecision, match="no decision of 'other'"):
                await client.explain("other")
            with pytest.raises(InvalidRequest, match="request_id: must not be empty"):
                await client.explain("")
        with Client(address) as blocking:
            assert await asyncio.to_thread(blocking.explain, "req-scripted") == DECISIONS
