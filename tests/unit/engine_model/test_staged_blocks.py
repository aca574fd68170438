"""Copies between blocks and host memory, on a CPU: the code a GPU's blocks go through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from engine.kv_cache import KvCache
from engine.staged_blocks import StagedBlocks
from pdserve.errors import EngineFailure
from pdserve.types import KVLayout

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=8, block_size=4, dtype="bfloat16")
SIZE = LAYOUT.block_bytes


class HeldStream:
    """Stands in for the device's stream: a copy ends when the test lets it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_end = threading.Event()
        self.error: Exception | None = None

    def __enter__(self) -> None:
        self.begun.set()

    def __exit__(self, *error: object) -> None:
        assert self.let_end.wait(10)
        if self.error is not None:
            raise self.error

    def used(self) -> HeldStream:
        return self


@pytest.fixture
def cache() -> KvCache:
    cache = KvCache(LAYOUT, 6, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    cache.blocks[:6] = torch.randn(cache.blocks[:6].shape, generator=generator).to(torch.bfloat16)
    return cache


@pytest.fixture
def staged(cache: KvCache) -> Iterator[StagedBlocks]:
    made = StagedBlocks(cache.blocks, cache.num_blocks)
    yield made
    made.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("kv-copy")]


@pytest.fixture
def held(staged: StagedBlocks, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldStream]:
    stream = HeldStream()
    monkeypatch.setattr(staged._reading, "stream", stream)
    monkeypatch.setattr(staged._writing, "stream", stream)
    yield stream
    stream.let_end.set()


async def begun(stream: HeldStream) -> None:
    assert await asyncio.to_thread(stream.begun.wait, 10)


async def test_what_is_read_is_what_the_blocks_hold(cache: KvCache, staged: StagedBlocks) -> None:
    out = staged.staging(3 * SIZE)
    await staged.read([4, 0, 3], out)
    assert bytes(out) == b"".join(bytes(cache.view(block_id)) for block_id in (4, 0, 3))


async def test_what_is_written_is_in_the_blocks_and_nowhere_else(
    cache: KvCache, staged: StagedBlocks
) -> None:
    before = [bytes(cache.view(block_id)) for block_id in range(6)]
    data = staged.staging(2 * SIZE)
    data[:] = bytes(range(256)) * (2 * SIZE // 256)
    await staged.write([5, 1], data)
    after = [bytes(cache.view(block_id)) for block_id in range(6)]
    assert (after[5], after[1]) == (bytes(data[:SIZE]), bytes(data[SIZE:]))
    assert [after[i] for i in (0, 2, 3, 4)] == [before[i] for i in (0, 2, 3, 4)]
    assert not cache.blocks[cache.zero_block_id].any()


@pytest.mark.parametrize("block_id", [-1, 6, 7])
async def test_blocks_outside_the_pool_are_refused(staged: StagedBlocks, block_id: int) -> None:
    """6 is the block of zeros that batches are padded with."""
    data = staged.staging(2 * SIZE)
    with pytest.raises(IndexError, match=f"block_id: {block_id}"):
        await staged.write([0, block_id], data)
    with pytest.raises(IndexError, match=f"block_id: {block_id}"):
        await staged.read([0, block_id], data)


async def test_memory_of_another_size_is_refused(staged: StagedBlocks) -> None:
    with pytest.raises(ValueError, match=f"not {2 * SIZE}"):
        await staged.read([0, 1], staged.staging(SIZE))
    with pytest.raises(ValueError, match="cannot be written"):
        await staged.write([0], memoryview(bytes(SIZE)))


async def test_the_loop_is_free_while_a_copy_runs(staged: StagedBlocks, held: HeldStream) -> None:
    out = staged.staging(SIZE)
    reading = asyncio.create_task(staged.read([0], out))
    await begun(held)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    held.let_end.set()
    await reading


async def test_what_goes_out_does_not_wait_for_what_comes_in(
    cache: KvCache, staged: StagedBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = HeldStream()
    monkeypatch.setattr(staged._writing, "stream", stream)
    writing = asyncio.create_task(staged.write([0], staged.staging(SIZE)))
    await begun(stream)
    out = staged.staging(SIZE)
    await staged.read([3], out)
    assert bytes(out) == bytes(cache.view(3))
    assert not writing.done()
    stream.let_end.set()
    await writing


async def test_a_cancel_is_raised_when_the_copy_has_ended(
    staged: StagedBlocks, held: HeldStream
) -> None:
    writing = asyncio.create_task(staged.write([0], staged.staging(SIZE)))
    await begun(held)
    for _ in range(2):  # a second cancel changes nothing
        writing.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not writing.done()
    held.let_end.set()
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_a_cancel_takes_back_a_copy_that_has_not_begun(
    cache: KvCache, staged: StagedBlocks, held: HeldStream
) -> None:
    before = bytes(cache.view(1))
    first = asyncio.create_task(staged.write([0], staged.staging(SIZE)))
    second = asyncio.create_task(staged.write([1], staged.staging(SIZE)))
    await begun(held)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert not first.done()
    held.let_end.set()
    await first
    assert bytes(cache.view(1)) == before


@pytest.mark.parametrize("cancels", [False, True])
async def test_a_failing_device_is_an_engine_failure(
    staged: StagedBlocks, held: HeldStream, cancels: bool
) -> None:
    held.error = RuntimeError("an illegal memory access")
    reading = asyncio.create_task(staged.read([0, 2], staged.staging(2 * SIZE)))
    await begun(held)
    if cancels:
        reading.cancel()
    held.let_end.set()
    with pytest.raises(asyncio.CancelledError if cancels else EngineFailure) as caught:
        await reading
    if not cancels:
        assert str(caught.value) == "copy of 2 blocks from cpu: an illegal memory access"


def test_blocks_on_a_device_have_a_copier_and_no_view(cache: KvCache) -> None:
    assert cache.copier is None
    elsewhere = KvCache(LAYOUT, 6, torch.device("meta"))
    assert isinstance(elsewhere.copier, StagedBlocks)
    with pytest.raises(ValueError, match="no byte view of KV on meta"):
        elsewhere.view(0)
    elsewhere.close()
