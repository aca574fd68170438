"""Actors that hold KV or read it, to be killed by a test; and what a node's object store holds."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from pdserve.types import Endpoint
from support.kv_pair import kv_pair, until
from support.source_tree import ROOT

NUM_TOKENS = 16
_ENVIRONMENT = {"env_vars": {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}}


class HoldingActor:
    """Offers ticket-1, half computed."""

    async def begin(self) -> str:
        """Its address."""
        self.stack = AsyncExitStack()  # kept, or it would end with this call
        pair = await self.stack.enter_async_context(kv_pair("ray"))
        self.export = pair.offer(pair.ticket(NUM_TOKENS))
        self.export.advance(8)
        return pair.endpoint.address


class ReadingActor:
    """Reads ticket-1."""

    async def begin(self, address: str) -> None:
        """Return once it has the KV begun."""
        self.stack = AsyncExitStack()  # kept, or it would end with this call
        pair = await self.stack.enter_async_context(kv_pair("ray"))
        ticket = pair.ticket(NUM_TOKENS, endpoints=(Endpoint("ray", address),))
        self.reading = pair.redeem(ticket)
        await until(lambda: pair.intake.bytes_taken > 0)


def start(cls: type) -> Any:
    return ray.remote(cls).options(num_cpus=0, runtime_env=_ENVIRONMENT).remote()


def store_stats() -> Any:
    """Of all nodes: object_store_bytes_used, num_local_objects, spilled_bytes_total."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats
