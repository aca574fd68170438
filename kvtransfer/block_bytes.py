"""Payload bytes out of blocks and into them, wherever the blocks lie.

Where the host addresses the blocks nothing is copied but the payload itself, and nothing waits.
Blocks on a device are copied through host memory; the caller waits, its event loop does not. Leases
are pinned while a copy runs, and a copy has ended when a call returns or is cancelled (store.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Fill:
    """How blocks of a frame's payload get into memory; called in order.

    ``put(index, pieces)``: blocks from ``index`` on, as many as there are pieces.
    ``at_once_bytes``: what one call takes best; it is given one block at least.
    """

    put: Callable[[int, Sequence[memoryview]], Awaitable[None]]
    at_once_bytes: int = 0


def carried(frame: Frame) -> Fill:
    """The payload came with the message."""
    (payload,) = frame.pieces

    async def put(index: int, pieces: Sequence[memoryview]) -> None:
        start = index * pieces[0].nbytes
        for piece in pieces:
            piece[:] = payload[start : start + piece.nbytes]
            start += piece.nbytes

    return Fill(put)


def following(lane: PayloadLane) -> Fill:
    """The payload follows the message."""

    async def put(index: int, pieces: Sequence[memoryview]) -> None:
        await lane.receive_into(pieces)

    return Fill(put)


def lying_there(frame: Frame, window: Window) -> Fill:
    """The payload lies in the holder's blocks."""

    async def put(index: int, pieces: Sequence[memoryview]) -> None:
        block_ids = frame.block_ids[index : index + len(pieces)]
        await window.read([block_id * pieces[0].nbytes for block_id in block_ids], pieces)

    return Fill(put, window.at_once_bytes)


def paced(fill: Fill, intake: IntakeBudget) -> Fill:
    """Each call waits for its share of the budget: a frame may take several steps to go in."""

    async def put_in_turn(index: int, pieces: Sequence[memoryview]) -> None:
        await intake.take(sum(piece.nbytes for piece in pieces))
        await fill.put(index, pieces)

    return Fill(put_in_turn, fill.at_once_bytes)


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
    """Blocks are summed right after they were filled: they still lie in the cache then.

    ``pieces``: a block each, all of one size.
    """
    checksum = PayloadChecksum()
    num_at_once = max(1, fill.at_once_bytes // pieces[0].nbytes)
    for index in range(0, len(pieces), num_at_once):
        filled = pieces[index : index + num_at_once]
        await fill.put(index, filled)
        for piece in filled:
            checksum.add(piece)
    if checksum.value != frame.xxh3:
        raise _differs(frame, "checksum")


def _differs(frame: Frame, what: str) -> FrameCorrupt:
    return FrameCorrupt(f"frame {frame.seq}: {what} differs")
