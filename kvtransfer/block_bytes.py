"""Payload bytes out of blocks and into them, wherever the blocks lie.

Where the host addresses the blocks nothing is copied but the payload itself, and nothing waits.
Blocks on a device are copied through host memory; the caller waits, its event loop does not. Leases
are pinned while a copy runs, and a copy has ended when a call returns or is cancelled (store.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtransfer.digest import payload_checksum
from kvtransfer.messages import Frame
from kvtransfer.store import BlockBuffers, BlockCopier, Lease
from pdserve.errors import FrameCorrupt


async def block_pieces(buffers: BlockBuffers, block_ids: Sequence[int]) -> tuple[memoryview, ...]:
    """Bytes of whole blocks, in order: views of the blocks themselves, or one copy of them.

    The caller holds the pin until it no longer needs the pieces. Raises EngineFailure.
    """
    if buffers.copier is None:
        return tuple(buffers.view(block_id) for block_id in block_ids)
    copy = buffers.copier.staging(len(block_ids) * buffers.layout.block_bytes)
    await buffers.copier.read(block_ids, copy)
    return (copy,)


async def place_frame(
    buffers: BlockBuffers, lease: Lease, first_block: int, frame: Frame, *, read_back: bool
) -> None:
    """Copy a received payload into the blocks of a lease and check it on that copy.

    On a device the copy that is checked is the one in host memory that the device reads, before it
    goes in; with ``read_back`` what the blocks then hold is copied out and checked as well.

    Raises:
        FrameCorrupt: the checksum of either copy differs. On a device a payload whose first copy
            differs was not written.
        EngineFailure: the device failed to copy.
    """
    (payload,) = frame.pieces
    num_blocks = payload.nbytes // buffers.layout.block_bytes
    block_ids = [lease.block_at(first_block + index) for index in range(num_blocks)]
    if buffers.copier is None:
        views = await block_pieces(buffers, block_ids)
        for index, view in enumerate(views):
            view[:] = payload[index * len(view) : (index + 1) * len(view)]
        _check(views, frame, "checksum")
        return
    lease.pin()
    try:
        await _write(buffers.copier, block_ids, frame)
        if read_back:
            held = await block_pieces(buffers, block_ids)
            _check(held, frame, f"checksum of what was read back from {buffers.device}")
    finally:
        lease.unpin()


async def _write(copier: BlockCopier, block_ids: Sequence[int], frame: Frame) -> None:
    (payload,) = frame.pieces
    staged = copier.staging(payload.nbytes)
    staged[:] = payload
    _check((staged,), frame, "checksum")
    await copier.write(block_ids, staged)


def _check(own: Sequence[memoryview], frame: Frame, what: str) -> None:
    if payload_checksum(own) != frame.xxh3:
        raise FrameCorrupt(f"frame {frame.seq}: {what} differs")
