"""Payload bytes out of blocks and into them, wherever the blocks lie.

Where the host addresses the blocks nothing is copied but the payload itself, and nothing waits.
Blocks on a device are copied through host memory; the caller waits, its event loop does not. Leases
are pinned while a copy runs, and a copy has ended when a call returns or is cancelled (store.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from kvtransfer.digest import payload_checksum
from kvtransfer.messages import Frame
from kvtransfer.store import BlockBuffers, BlockCopier, Lease
from kvtransfer.transports.base import Window
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


Fill = Callable[[Sequence[memoryview]], Awaitable[None]]
"""Puts the payload of a frame into pieces of memory, one a block."""


def carried(frame: Frame) -> Fill:
    """The payload came with the message."""

    async def fill(pieces: Sequence[memoryview]) -> None:
        (payload,) = frame.pieces
        start = 0
        for piece in pieces:
            piece[:] = payload[start : start + piece.nbytes]
            start += piece.nbytes

    return fill


def lying_there(frame: Frame, window: Window, block_bytes: int) -> Fill:
    """The payload lies in the holder's blocks. ``block_bytes``: of one of those."""

    async def fill(pieces: Sequence[memoryview]) -> None:
        await window.read([block_id * block_bytes for block_id in frame.block_ids], pieces)

    return fill


async def place_frame(
    buffers: BlockBuffers,
    lease: Lease,
    blocks: range,
    frame: Frame,
    fill: Fill,
    *,
    read_back: bool,
) -> None:
    """Copy the payload of a frame into ``blocks`` of a lease and check it on that copy.

    On a device the copy that is checked is the one in host memory that the device reads, before it
    goes in; with ``read_back`` what the blocks then hold is copied out and checked as well.

    Raises:
        FrameCorrupt: the checksum of either copy differs. On a device a payload whose first copy
            differs was not written.
        EngineFailure: the device failed to copy.
        PeerUnreachable: the holder's memory is gone.
    """
    block_ids = [lease.block_at(index) for index in blocks]
    lease.pin()
    try:
        if buffers.copier is None:
            views = await block_pieces(buffers, block_ids)
            await fill(views)
            _check(views, frame, "checksum")
            return
        await _write(buffers.copier, block_ids, frame, fill, buffers.layout.block_bytes)
        if read_back:
            held = await block_pieces(buffers, block_ids)
            _check(held, frame, f"checksum of what was read back from {buffers.device}")
    finally:
        lease.unpin()


async def _write(
    copier: BlockCopier, block_ids: Sequence[int], frame: Frame, fill: Fill, block_bytes: int
) -> None:
    staged = copier.staging(len(block_ids) * block_bytes)
    await fill(
        [staged[start : start + block_bytes] for start in range(0, len(staged), block_bytes)]
    )
    _check((staged,), frame, "checksum")
    await copier.write(block_ids, staged)


def _check(own: Sequence[memoryview], frame: Frame, what: str) -> None:
    if payload_checksum(own) != frame.xxh3:
        raise FrameCorrupt(f"frame {frame.seq}: {what} differs")
