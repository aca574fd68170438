"""A frame of the holder's layout, or of a coding of it, into a reader's blocks of its own.

The payload goes into host memory first and is checked there; then it is expanded if it is coded,
and converted into the blocks. Own blocks begin and end elsewhere than the holder's, so on a device
those that a frame touches are copied out, filled up and copied in again.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtransfer.block_bytes import Put, fill_checked
from kvtransfer.coding import EXACT, coded_block_bytes
from kvtransfer.messages import Frame
from kvtransfer.store import BlockBuffers, Lease
from pdserve.errors import FrameCorrupt
from pdserve.types import KVLayout


@dataclass(frozen=True, slots=True)
class Arriving:
    """What the payloads of a read are: blocks of ``layout``, each in the form of ``coding``."""

    layout: KVLayout
    coding: str = EXACT


async def place_converted(
    buffers: BlockBuffers,
    lease: Lease,
    arriving: Arriving,
    frame: Frame,
    first_wanted: int,
    put: Put,
    *,
    read_back: bool,
) -> None:
    """Write the frame's tokens from ``first_wanted`` on; those before it are there already.

    Raises:
        FrameCorrupt: the checksum differs (nothing was written then), or with ``read_back`` a
            device does not hold what was copied in.
        EngineFailure: the device failed to copy.
        PeerUnreachable: the holder is gone.
    """
    source, coding = arriving.layout, arriving.coding
    num_blocks = source.num_blocks(frame.num_tokens)
    pieces = _pieces(num_blocks, coded_block_bytes(source, coding))
    await fill_checked(pieces, frame, put)
    if coding != EXACT:
        # torch is imported where KV is converted: a process that never does need not have it.
        from kvtransfer.compress import expand

        coded, pieces = pieces, _pieces(num_blocks, source.block_bytes)
        expand(source, coding, coded, pieces)
    tokens = range(max(frame.first_token, first_wanted), frame.first_token + frame.num_tokens)
    if tokens:
        await _write(buffers, lease, source, pieces, frame, tokens, read_back=read_back)


async def _write(
    buffers: BlockBuffers,
    lease: Lease,
    source: KVLayout,
    pieces: list[memoryview],
    frame: Frame,
    tokens: range,
    *,
    read_back: bool,
) -> None:
    from kvtransfer.convert import BlockRun, copy_tokens

    own, copier = buffers.layout, buffers.copier
    blocks = range(tokens.start // own.block_size, own.num_blocks(tokens.stop))
    block_ids = [lease.block_at(index) for index in blocks]
    came = BlockRun(source, pieces, frame.first_token)
    first_token = blocks.start * own.block_size
    lease.pin()
    try:
        if copier is None:
            views = [buffers.view(block_id) for block_id in block_ids]
            copy_tokens(came, BlockRun(own, views, first_token), tokens)
            return
        size = own.block_bytes
        held = copier.staging(len(block_ids) * size)
        await copier.read(block_ids, held)
        views = [held[start : start + size] for start in range(0, len(held), size)]
        copy_tokens(came, BlockRun(own, views, first_token), tokens)
        await copier.write(block_ids, held)
        if read_back:
            again = copier.staging(len(held))
            await copier.read(block_ids, again)
            if again != held:
                raise FrameCorrupt(f"frame {frame.seq}: {buffers.device} holds something else")
    finally:
        lease.unpin()


def _pieces(num_blocks: int, size: int) -> list[memoryview]:
    """New host memory for so many blocks."""
    staged = memoryview(bytearray(num_blocks * size))
    return [staged[start : start + size] for start in range(0, len(staged), size)]
