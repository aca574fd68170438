"""Parking: the KV of a sequence moved to host memory, exactly, and back.

Only blocks that hold computed tokens are copied. Parking happens within one turn of the event loop;
a copy from a device's memory does not fit in one, so on a GPU nothing is copied and the KV is
computed again instead (planning.py). Not covered: disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.block_pool import BlockBuffers, BlockLease


@dataclass(frozen=True, slots=True)
class ParkedKv:
    """Bytes of the blocks of one sequence, in order of position."""

    blocks: tuple[bytes, ...]

    @property
    def num_bytes(self) -> int:
        return sum(len(block) for block in self.blocks)


def copy_out(buffers: BlockBuffers, lease: BlockLease, num_computed: int) -> ParkedKv:
    """Copy the KV of the first ``num_computed`` tokens (whole blocks) out of the pool."""
    num_blocks = buffers.layout.num_blocks(num_computed)
    return ParkedKv(tuple(bytes(buffers.view(lease.block_at(i))) for i in range(num_blocks)))


def copy_in(buffers: BlockBuffers, lease: BlockLease, parked: ParkedKv) -> None:
    """Copy parked KV into the first blocks of ``lease``, but for those that came with it."""
    for i, block in enumerate(parked.blocks):
        if i >= lease.num_cached:
            buffers.view(lease.block_at(i))[:] = block
