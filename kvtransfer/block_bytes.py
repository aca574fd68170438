"""Payload bytes out of blocks and into them, wherever the blocks lie.

Where the host addresses the blocks nothing is copied but the payload itself, and nothing waits.
Blocks on a device are copied through host memory; the caller waits, its event loop does not. Leases
are pinned while a copy runs, and a copy has ended when a call returns or is cancelled (store.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from kvtransfer.digest import PayloadChecksum, payload_checksum
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import Frame
from kvtransfer.store import BlockBuffers, BlockCopier, Lease
from kvtransfer.transports.base import PayloadLane, Window
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


Fill = Callable[[int, memoryview], Awaitable[None]]
"""Puts block ``index`` of a frame's payload into a piece of memory; called in order."""


def carried(frame: Frame) -> Fill:
    """The payload came with the message."""
    (payload,) = frame.pieces

    async def fill(index: int, piece: memoryview) -> None:
        start = index * piece.nbytes
        piece[:] = payload[start : start + piece.nbytes]

    return fill


def following(lane: PayloadLane) -> Fill:
    """The payload follows the message."""

    async def fill(index: int, piece: memoryview) -> None:
        await lane.receive_into((piece,))

    return fill


def lying_there(frame: Frame, window: Window) -> Fill:
    """The payload lies in the holder's blocks."""

    async def fill(index: int, piece: memoryview) -> None:
        await window.read((frame.block_ids[index] * piece.nbytes,), (piece,))

    return fill


def paced(fill: Fill, intake: IntakeBudget) -> Fill:
    """Each block waits for its share of the budget: a frame may take several steps to go in."""

    async def fill_in_turn(index: int, piece: memoryview) -> None:
        await intake.take(piece.nbytes)
        await fill(index, piece)

    return fill_in_turn


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
            await fill_checked(await block_pieces(buffers, block_ids), frame, fill)
            return
        await _write(buffers.copier, block_ids, frame, fill, buffers.layout.block_bytes)
        if read_back:
            held = await block_pieces(buffers, block_ids)
            if payload_checksum(held) != frame.xxh3:
                raise _differs(frame, f"checksum of what was read back from {buffers.device}")
    finally:
        lease.unpin()


async def _write(
    copier: BlockCopier, block_ids: Sequence[int], frame: Frame, fill: Fill, block_bytes: int
) -> None:
    staged = copier.staging(len(block_ids) * block_bytes)
    pieces = [staged[start : start + block_bytes] for start in range(0, len(staged), block_bytes)]
    await fill_checked(pieces, frame, fill)
    await copier.write(block_ids, staged)


async def fill_checked(pieces: Sequence[memoryview], frame: Frame, fill: Fill) -> None:
    """Each block is summed right after it was filled: it still lies in the cache then."""
    checksum = PayloadChecksum()
    for index, piece in enumerate(pieces):
        await fill(index, piece)
        checksum.add(piece)
    if checksum.value != frame.xxh3:
        raise _differs(frame, "checksum")


def _differs(frame: Frame, what: str) -> FrameCorrupt:
    return FrameCorrupt(f"frame {frame.seq}: {what} differs")
