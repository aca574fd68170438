"""The nixl transport's window over an agent that does as it is told: no package is needed."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Sequence
from typing import cast

import pytest

from kvtransfer.transports.nixl import NixlWindow
from kvtransfer.transports.nixl_agent import DRAM, Memory, NixlAgent, Span
from kvtransfer.transports.nixl_landing import Landing, address_of
from pdserve.errors import FrameCorrupt, PeerUnreachable
from support.kv_pair import settle

POOL = bytes(range(200))


class Agent:
    """Reads by copying, once ``gate`` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.sizes: list[int] = []
        self.failure: Exception | None = None
        self.removed: list[str] = []

    async def read(self, name: str, kind: str, device: int, spans: Sequence[Span]) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        for span in spans:
            ctypes.memmove(span.mine, span.theirs, span.num_bytes)
        self.sizes.append(sum(span.num_bytes for span in spans))

    async def remove(self, name: str) -> None:
        self.removed.append(name)


def window_of(agent: Agent, landing: Landing) -> NixlWindow:
    pool = memoryview(bytearray(POOL))
    memory = Memory(address_of(pool), len(pool), DRAM)
    window = NixlWindow("nixl test", cast(NixlAgent, agent), "a", memory, landing)
    window.keep = pool  # type: ignore[attr-defined]
    return window


def must_not_be_placed(piece: memoryview) -> None:
    raise AssertionError(f"{len(piece)} bytes were placed")


@pytest.mark.parametrize("sizes", [[1], [10, 10, 10], [64], [100, 60, 1], [3, 61, 64]])
async def test_pieces_of_any_size_come_by_whole_slots(sizes: list[int]) -> None:
    agent, landing = Agent(), Landing(slot_bytes=64, num_slots=2)
    window = window_of(agent, landing)
    out = [memoryview(bytearray(size)) for size in sizes]
    offsets = [7 * index for index in range(len(sizes))]
    placed: list[bytes] = []  # as they were when they were said to be
    await window.read(offsets, out, lambda piece: placed.append(bytes(piece)))
    wanted = [POOL[at : at + size] for at, size in zip(offsets, sizes, strict=True)]
    assert [bytes(piece) for piece in out] == wanted
    assert placed == wanted
    *whole, last = agent.sizes
    assert all(size == 64 for size in whole)
    assert last <= 64
    await settle()
    assert landing.num_free == 2


@pytest.mark.parametrize("offset", [-1, 191, 200])
async def test_nothing_outside_the_pool_is_read(offset: int) -> None:
    agent = Agent()
    window = window_of(agent, Landing(64, 1))
    out = [memoryview(bytearray(10)), memoryview(bytearray(10))]
    with pytest.raises(FrameCorrupt, match="pool of 200"):
        await window.read([0, offset], out, must_not_be_placed)
    assert agent.sizes == []


async def test_a_read_given_up_keeps_its_slot_and_never_writes_into_what_it_was_for() -> None:
    """NIXL goes on writing after a request was released, so its end is waited for."""
    agent, landing = Agent(), Landing(64, 2)
    window = window_of(agent, landing)
    out = memoryview(bytearray(30))
    agent.gate.clear()
    reading = asyncio.create_task(window.read([5], [out], must_not_be_placed))
    await settle()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await settle()
    assert landing.num_free == 1
    agent.gate.set()
    await settle()
    assert agent.sizes == [30]
    assert bytes(out) == bytes(30)
    assert landing.num_free == 2


async def test_who_finds_no_slot_waits_for_one() -> None:
    agent, landing = Agent(), Landing(64, 1)
    window = window_of(agent, landing)
    agent.gate.clear()
    outs = [memoryview(bytearray(8)) for _ in range(3)]
    placed: list[memoryview] = []
    reads = [
        asyncio.create_task(window.read([index], [out], placed.append))
        for index, out in enumerate(outs)
    ]
    await settle()
    reads[1].cancel()
    await settle()
    agent.gate.set()
    await asyncio.gather(reads[0], reads[2])
    assert [bytes(out) for out in outs] == [POOL[:8], bytes(8), POOL[2:10]]
    assert placed == [outs[0], outs[2]]
    await settle()
    assert landing.num_free == 1


async def test_a_failed_read_gives_its_slot_back() -> None:
    agent, landing = Agent(), Landing(64, 1)
    window = window_of(agent, landing)
    agent.failure = PeerUnreachable("nixl: the read failed")
    with pytest.raises(PeerUnreachable, match="failed"):
        await window.read([0], [memoryview(bytearray(8))], must_not_be_placed)
    await settle()
    assert landing.num_free == 1


async def test_a_forgotten_holder_is_read_no_more() -> None:
    agent = Agent()
    window = window_of(agent, Landing(64, 1))
    await window.close()
    await window.close()
    assert agent.removed == ["a"]
    with pytest.raises(PeerUnreachable, match="gone"):
        await window.read([0], [memoryview(bytearray(8))], must_not_be_placed)
