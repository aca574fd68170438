"""Memory as on a device, without one: the road may only copy, and the test holds the copies up.

``StagedBuffers`` puts a copier in front of ordinary blocks and forbids ``view``; ``StagedRunner``
is a step runner whose blocks look so to everyone but itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from engine.block_pool import BlockBuffers, BlockCopier
from engine.step import SampledToken, StepRow, StepRunner
from pdserve.types import KVLayout

DEVICE = "cuda:7"


class GatedCopier:
    """Satisfies BlockCopier. A copy takes place once its gate is set, whatever its caller does.

    ``fail_with`` makes copies raise; ``damaged`` makes writes put a wrong byte into the blocks.
    """

    def __init__(self, buffers: BlockBuffers) -> None:
        self._buffers = buffers
        self.read_gate, self.write_gate = asyncio.Event(), asyncio.Event()
        self.read_gate.set()
        self.write_gate.set()
        self.num_reads = self.num_writes = 0
        self.num_running = 0
        self.fail_with: Exception | None = None
        self.damaged = False

    def staging(self, num_bytes: int) -> memoryview:
        return memoryview(bytearray(num_bytes))

    async def read(self, block_ids: Sequence[int], out: memoryview) -> None:
        self.num_reads += 1
        await self._opened(self.read_gate)
        for piece, block in self._pairs(block_ids, out):
            piece[:] = block

    async def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        self.num_writes += 1
        await self._opened(self.write_gate)
        for piece, block in self._pairs(block_ids, data):
            block[:] = piece
            if self.damaged:
                block[5] ^= 1

    def _pairs(
        self, block_ids: Sequence[int], host: memoryview
    ) -> list[tuple[memoryview, memoryview]]:
        size = self._buffers.layout.block_bytes
        assert host.nbytes == len(block_ids) * size
        return [
            (host[index * size : (index + 1) * size], self._buffers.view(block_id))
            for index, block_id in enumerate(block_ids)
        ]

    async def _opened(self, gate: asyncio.Event) -> None:
        """The wait of one copy: a cancel is raised when it is over, as the contract says."""
        self.num_running += 1
        waiting = asyncio.create_task(gate.wait())
        cancelled: asyncio.CancelledError | None = None
        while not waiting.done():
            try:
                await asyncio.wait({waiting})
            except asyncio.CancelledError as error:
                cancelled = error
        self.num_running -= 1
        if self.fail_with is not None:
            raise self.fail_with
        if cancelled is not None:
            raise cancelled


class StagedBuffers:
    """Satisfies BlockBuffers as a device's memory does."""

    def __init__(self, inner: BlockBuffers, copier: BlockCopier) -> None:
        self.layout: KVLayout = inner.layout
        self.num_blocks = inner.num_blocks
        self.device = DEVICE
        self.copier: BlockCopier | None = copier
        self.memory_fd: int | None = None

    def view(self, block_id: int) -> memoryview:
        raise ValueError(f"no byte view of block {block_id} on {self.device}")


class StagedRunner:
    """Satisfies StepRunner; computes on ``inner``, shows ``inner``'s blocks through ``copier``."""

    def __init__(self, inner: StepRunner, copier: BlockCopier) -> None:
        self.inner = inner
        self.buffers: BlockBuffers = StagedBuffers(inner.buffers, copier)
        self.layout = inner.layout
        self.vocab_size = inner.vocab_size
        self.eos_token_ids = inner.eos_token_ids
        self.device = f"{DEVICE}, {inner.device}"

    async def run(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        return await self.inner.run(rows)

    async def close(self) -> None:
        await self.inner.close()
