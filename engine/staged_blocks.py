"""Bytes of KV blocks that the host cannot address, copied through host memory beside the loop.

Each direction has a thread and a stream of its own (devices.py) and does one copy at a time: a bus
carries both ways at once, and what is sent does not wait for what arrives. A step that has ended
was waited for (model_runner.py), so its blocks may be read at once; a copy is waited for before its
caller goes on, so the next step may read what was written. Satisfies ``BlockCopier``. Device
neutral: on a CPU the same code runs without waiting. Not covered: copies between devices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from engine.devices import CopyStream, host_memory
from pdserve.errors import EngineFailure


class StagedBlocks:
    """``blocks`` [>= num_blocks, ...], contiguous; those after can be neither read nor written.

    A thread starts with the first copy of its direction; ``close`` ends both.
    """

    def __init__(self, blocks: torch.Tensor, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._rows = blocks.view(torch.uint8).view(len(blocks), -1)
        self._reading = _Lane(blocks.device, "kv-copy-out")
        self._writing = _Lane(blocks.device, "kv-copy-in")

    def staging(self, num_bytes: int) -> memoryview:
        """See ``BlockCopier``. On a GPU page-locked, and slow to make only the first times.

        Raises:
            EngineFailure: there is none.
        """
        try:
            return host_memory(num_bytes, self._rows.device)
        except RuntimeError as error:
            raise EngineFailure(f"staging of {num_bytes} bytes: {error}") from error

    async def read(self, block_ids: SequenceOf[int], out: memoryview) -> None:
        """See ``BlockCopier``."""
        await self._run(block_ids, out, to_host=True)

    async def write(self, block_ids: SequenceOf[int], data: memoryview) -> None:
        """See ``BlockCopier``."""
        await self._run(block_ids, data, to_host=False)

    def close(self) -> None:
        """End the threads. No copy may be running."""
        self._reading.thread.shutdown()
        self._writing.thread.shutdown()

    async def _run(self, block_ids: SequenceOf[int], host: memoryview, *, to_host: bool) -> None:
        num_bytes = len(block_ids) * self._rows.shape[1]
        if host.nbytes != num_bytes or host.readonly:
            raise ValueError(f"{host.nbytes} bytes, not {num_bytes}, or they cannot be written")
        for block_id in block_ids:
            if not 0 <= block_id < self._num_blocks:
                raise IndexError(f"block_id: {block_id}, the pool holds {self._num_blocks}")
        lane = self._reading if to_host else self._writing
        await _end_of(lane.thread.submit(self._copy, lane, tuple(block_ids), host, to_host))

    def _copy(
        self, lane: _Lane, block_ids: tuple[int, ...], host: memoryview, to_host: bool
    ) -> None:
        """In the lane's thread."""
        pieces = torch.frombuffer(host, dtype=torch.uint8).view(len(block_ids), -1)
        try:
            with lane.stream.used():
                for piece, block_id in zip(pieces, block_ids, strict=True):
                    source, target = self._rows[block_id], piece
                    if not to_host:
                        source, target = target, source
                    target.copy_(source, non_blocking=True)
        except RuntimeError as error:  # torch's, a device's error among them
            way = "from" if to_host else "to"
            raise EngineFailure(
                f"copy of {len(block_ids)} blocks {way} {self._rows.device}: {error}"
            ) from error


class _Lane:
    """One direction: copies run in ``thread`` on ``stream``, one after the other."""

    def __init__(self, device: torch.device, name: str) -> None:
        self.stream = CopyStream(device)
        self.thread = ThreadPoolExecutor(1, name)


async def _end_of(job: Future[None]) -> None:
    """Wait for a copy. A cancel takes back one that has not begun and waits for one that has."""
    ended = asyncio.wrap_future(job)
    cancelled: asyncio.CancelledError | None = None
    while not ended.done():
        try:
            await asyncio.wait({ended})
        except asyncio.CancelledError as error:
            cancelled = error
            job.cancel()
    if cancelled is None:
        ended.result()
        return
    if not ended.cancelled():
        ended.exception()  # the cancel is what the caller asked for
    raise cancelled
