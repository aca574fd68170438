"""Messages as objects in a Ray cluster's store: put by one process, read in place by another.

A reference travels outside of Ray's calls here. ``ray.cloudpickle`` could write one down, but then
pins its object until the process ends; so the two calls of Ray's core that it makes are made here,
without the pin (of Ray 2.60; the only use here of what Ray does not document). What that
asks for is kept by ray.py: the owner holds the reference until it is told that the reader has read.

Knows neither connections nor what is in a message.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
import ray
from ray._private.worker import global_worker
from ray.exceptions import RayError

from pdserve.errors import ConfigError, PeerUnreachable

STORE_SHARE = 16  # a holder's objects take up to one part in so many of its node's store


async def put(data: bytes | memoryview) -> ray.ObjectRef[Any]:
    """Copy into the store of this node, on a thread. Raises PeerUnreachable: the store is gone."""
    try:
        return await asyncio.to_thread(ray.put, pickle.PickleBuffer(data))
    except RayError as error:
        raise PeerUnreachable(f"ray: {_first_line(error)}") from error


def written_down(ref: ray.ObjectRef[Any]) -> bytes:
    """For another process of the cluster, which may read while this one keeps ``ref``."""
    _, owner, status = _core().serialize_object_ref(ref)
    return bytes(msgpack.packb((ref.binary(), owner, status)))


async def read(written: bytes | memoryview) -> memoryview:
    """The bytes, in shared memory, read only; they stay there while a view of them lives.

    Raises PeerUnreachable: the owner has died or let go, or this is no reference.
    """
    try:
        ref = _reference(written)
        return memoryview(await asyncio.wrap_future(ref.future()))
    except (RayError, ValueError, TypeError, msgpack.UnpackException) as error:
        raise PeerUnreachable(f"ray: {_first_line(error)}") from error


def _reference(written: bytes | memoryview) -> ray.ObjectRef[Any]:
    object_id, owner, status = msgpack.unpackb(written)
    ref: ray.ObjectRef[Any] = ray.ObjectRef(object_id, owner)
    _core().deserialize_and_register_object_ref(object_id, ray.ObjectRef.nil(), owner, status)
    return ref


def _core() -> Any:
    worker: Any = global_worker
    return worker.core_worker


def own_node() -> str:
    """Id of the node this process is on. Raises ConfigError: not part of a Ray cluster."""
    if not ray.is_initialized():
        raise ConfigError("KV transport ray: this process is not part of a Ray cluster")
    return str(ray.get_runtime_context().get_node_id())


def nodes() -> dict[str, int]:
    """Nodes of the cluster that live, by id, with the bytes of their stores. Asks the head."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {
        node["NodeID"]: int(node["Resources"].get("object_store_memory", 0))
        for node in found
        if node["Alive"]
    }


class StoreBudget:
    """Bytes of one holder's messages that lie in the store, over all its connections."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.most_bytes = 0  # that were there at once
        self._changed = asyncio.Event()

    def share(self, limit_bytes: int) -> StoreShare:
        return StoreShare(self, limit_bytes)

    def has_room(self, num_bytes: int) -> bool:
        """Alone they always fit."""
        return not self.used_bytes or self.used_bytes + num_bytes <= self.limit_bytes

    def add(self, num_bytes: int) -> None:
        self.used_bytes += num_bytes
        self.most_bytes = max(self.most_bytes, self.used_bytes)
        self.wake()

    def wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class StoreShare:
    """One connection's part of the budget, and what keeps its objects. ``close`` frees them all."""

    def __init__(self, budget: StoreBudget, limit_bytes: int) -> None:
        self._budget = budget
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._kept: deque[tuple[ray.ObjectRef[Any], int]] = deque()
        self._is_closed = False

    async def keep(self, data: bytes | memoryview) -> ray.ObjectRef[Any]:
        """Put ``data`` into the store once there is room. Raises PeerUnreachable once closed."""
        num_bytes = len(data)
        await self._budget.until(lambda: self._is_closed or self._has_room(num_bytes))
        self._refuse_if_closed()
        self._add(num_bytes)
        try:
            ref = await put(data)
            self._refuse_if_closed()
        except BaseException:
            self._add(-num_bytes)
            raise
        self._kept.append((ref, num_bytes))
        return ref

    def let_go(self, num_objects: int) -> None:
        """The reader has read the oldest ones."""
        for _ in range(min(num_objects, len(self._kept))):
            _, num_bytes = self._kept.popleft()
            self._add(-num_bytes)

    def close(self) -> None:
        self._is_closed = True
        self.let_go(len(self._kept))
        self._budget.wake()

    async def emptied(self) -> None:
        """Wait until the reader has read everything, or ``close``."""
        await self._budget.until(lambda: not self._kept)

    def _has_room(self, num_bytes: int) -> bool:
        mine = not self._used_bytes or self._used_bytes + num_bytes <= self._limit_bytes
        return mine and self._budget.has_room(num_bytes)

    def _add(self, num_bytes: int) -> None:
        self._used_bytes += num_bytes
        self._budget.add(num_bytes)

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise PeerUnreachable("ray: the reader is gone")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
