"""Payload bytes out of blocks and into them, wherever the blocks lie.

Where the host addresses the blocks nothing is copied but the payload itself, and nothing waits.
Blocks on a device are copied through host memory; the caller waits, its event loop does not. Leases
are pinned while a copy runs, and a copy has ended when a call returns or is cancelled (store.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kvtransfer.digest import PayloadChecksum, payload_checksum
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import Frame
from kvtransfer.store import BlockBuffers, BlockCopier, Lease
from kvtransfer.transports.base import PayloadLane, Placed, Window
from pdserve.errors import FrameCorrupt, PeerSilent


async def block_pieces(buffers: BlockBuffers, block_ids: Sequence[int]) -> tuple[memoryview, ...]:
    """Bytes of whole blocks, in order: views of the blocks themselves, or one copy of them.

    The caller holds the pin until it no longer needs the pieces. Raises EngineFailure.
    """
    if buffers.copier is None:
        return tuple(buffers.view(block_id) for block_id in block_ids)
    copy = buffers.copier.staging(len(block_ids) * buffers.layout.block_bytes)
    await buffers.copier.read(block_ids, copy)
    return (copy,)


Put = Callable[[int, Sequence[memoryview], Placed], Awaitable[None]]
"""Fills pieces, a block each, all of one size, with blocks of a frame's payload from a number on.

Each piece is handed to ``placed`` right after it was filled, in order: it lies in the cache then.
"""


@dataclass(frozen=True, slots=True)
class Fill:
    """How blocks of a frame's payload get into memory; ``put`` is called in order.

    ``at_once_bytes``: what one call takes best; it is given one block at least. None: any number
    of blocks, since it never waits.
    """

    put: Put
    at_once_bytes: int | None


def carried(frame: Frame) -> Fill:
    """The payload came with the message."""
    (payload,) = frame.pieces

    async def put(index: int, pieces: Sequence[memoryview], placed: Placed) -> None:
        start = index * pieces[0].nbytes
        for piece in pieces:
            piece[:] = payload[start : start + piece.nbytes]
            placed(piece)
            start += piece.nbytes

    return Fill(put, at_once_bytes=None)


def following(lane: PayloadLane) -> Fill:
    """The payload follows the message."""

    async def put(index: int, pieces: Sequence[memoryview], placed: Placed) -> None:
        for piece in pieces:
            await lane.receive_into((piece,))
            placed(piece)

    return Fill(put, at_once_bytes=0)


def bounded(fill: Fill, timeout_s: float) -> Fill:
    """One call takes no longer than this. Raises PeerSilent."""

    async def put(index: int, pieces: Sequence[memoryview], placed: Placed) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await fill.put(index, pieces, placed)
        except TimeoutError:
            raise PeerSilent(f"a payload did not come within {timeout_s:g} s") from None

    return Fill(put, fill.at_once_bytes)


def lying_there(frame: Frame, window: Window) -> Fill:
    """The payload lies in the holder's blocks."""

    async def put(index: int, pieces: Sequence[memoryview], placed: Placed) -> None:
        block_ids = frame.block_ids[index : index + len(pieces)]
        size = pieces[0].nbytes
        await window.read([block_id * size for block_id in block_ids], pieces, placed)

    return Fill(put, window.at_once_bytes)


def paced_by_calls(fill: Fill, intake: IntakeBudget) -> Put:
    """Each call waits for its share of the budget: a frame may take several steps to go in."""

    async def put_in_turn(index: int, pieces: Sequence[memoryview], placed: Placed) -> None:
        size = pieces[0].nbytes
        num_at_once = max(1, (fill.at_once_bytes or 0) // size)
        for start in range(0, len(pieces), num_at_once):
            some = pieces[start : start + num_at_once]
            await intake.take(len(some) * size)
            await fill.put(index + start, some, placed)

    return put_in_turn


def paced(fill: Fill, intake: IntakeBudget) -> Put:
    """``paced_by_calls``, but all goes in at once while nothing limits it, if it never waits.

    No limit can come up meanwhile then. One that waits (for a socket, for NIXL) could begin
    without a limit and end long after there is one.
    """
    in_turn = paced_by_calls(fill, intake)
    if fill.at_once_bytes is not None:
        return in_turn

    async def put_at_once(index: int, pieces: Sequence[memoryview], placed: Placed) -> None:
        free = intake.take_unlimited(len(pieces) * pieces[0].nbytes)
        await (fill.put if free else in_turn)(index, pieces, placed)

    return put_at_once


async def place_frame(
    buffers: BlockBuffers,
    lease: Lease,
    blocks: range,
    frame: Frame,
    put: Put,
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
        PeerSilent: the payload did not come.
    """
    block_ids = [lease.block_at(index) for index in blocks]
    lease.pin()
    try:
        if buffers.copier is None:
            await fill_checked(await block_pieces(buffers, block_ids), frame, put)
            return
        await _write(buffers.copier, block_ids, frame, put, buffers.layout.block_bytes)
        if read_back:
            held = await block_pieces(buffers, block_ids)
            if payload_checksum(held) != frame.xxh3:
                raise _differs(frame, f"checksum of what was read back from {buffers.device}")
    finally:
        lease.unpin()


async def _write(
    copier: BlockCopier, block_ids: Sequence[int], frame: Frame, put: Put, block_bytes: int
) -> None:
    staged = copier.staging(len(block_ids) * block_bytes)
    pieces = [staged[start : start + block_bytes] for start in range(0, len(staged), block_bytes)]
    await fill_checked(pieces, frame, put)
    await copier.write(block_ids, staged)


async def fill_checked(pieces: Sequence[memoryview], frame: Frame, put: Put) -> None:
    """``pieces``: a block each, all of one size. Raises FrameCorrupt: the checksum differs."""
    checksum = PayloadChecksum()
    await put(0, pieces, checksum.add)
    if checksum.value != frame.xxh3:
        raise _differs(frame, "checksum")


def _differs(frame: Frame, what: str) -> FrameCorrupt:
    return FrameCorrupt(f"frame {frame.seq}: {what} differs")
