"""KV blocks by number: who holds them, who is still reading them.

A lease is a handle that owns blocks. Blocks return to the pool when the lease is released *and*
nothing pins it: a running step, a KV read and a parking copy pin what they touch, so release is
always safe to call at once and takes effect when the last reader is done.

    leased --release()--> released, pinned --last unpin()--> free
       |                                                     ^
       +------------------release(), no pins-----------------+

Owned by the event loop thread. Knows neither tensors nor roles. Not covered yet: sharing of
blocks between sequences (prefix cache).
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from pdserve.types import KVLayout


class BlockCopier(Protocol):
    """Copies between host memory and blocks that the host cannot address (on a CUDA device).

    Copies run beside the event loop. A copy that has begun has ended when the call returns or
    raises, also when its caller is cancelled: pin the blocks for the call and they stay.
    """

    def staging(self, num_bytes: int) -> memoryview:
        """Writable host memory that copies go through fastest; free when no longer referred to."""

    async def read(self, block_ids: SequenceOf[int], out: memoryview) -> None:
        """Copy whole blocks out, one after another. Raises EngineFailure."""

    async def write(self, block_ids: SequenceOf[int], data: memoryview) -> None:
        """Copy whole blocks in. Raises EngineFailure: their content is undefined then."""


class BlockBuffers(Protocol):
    """The memory behind the pool, as the road (kvtransfer) sees it: no tensors.

    Either the host addresses it (``copier`` is None, use ``view``) or it does not (use ``copier``).
    """

    @property
    def layout(self) -> KVLayout: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def device(self) -> str:
        """A torch device string, for people."""

    @property
    def copier(self) -> BlockCopier | None: ...

    def view(self, block_id: int) -> memoryview:
        """Writable bytes of one whole block, ``layout.block_bytes`` long, in layout order.

        Raises ValueError if there is a ``copier``.
        """


class BlockPool:
    """Free list of ``num_blocks`` blocks. Freed blocks are reused last-in, first-out."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, not {num_blocks}")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def lease(self, num_blocks: int) -> BlockLease | None:
        """All ``num_blocks`` blocks, or None and nothing."""
        if num_blocks > len(self._free):
            return None
        lease = BlockLease(self)
        lease._take(num_blocks)
        return lease

    def _pop(self) -> int:
        block_id = self._free.pop()
        self._is_free[block_id] = False
        return block_id

    def _push(self, block_id: int) -> None:
        assert not self._is_free[block_id], f"block {block_id} returned twice"
        self._is_free[block_id] = True
        self._free.append(block_id)


class BlockLease:
    """Blocks of one sequence, in order of position. Satisfies kvtransfer's ``Lease``."""

    __slots__ = ("__weakref__", "_block_ids", "_freed", "_pins", "_pool", "_released")

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._block_ids: list[int] = []
        self._pins = 0
        self._released = False
        self._freed: asyncio.Event | None = None

    @property
    def block_ids(self) -> tuple[int, ...]:
        return tuple(self._block_ids)

    @property
    def num_blocks(self) -> int:
        return len(self._block_ids)

    @property
    def is_free(self) -> bool:
        """Released and unpinned: the blocks are back in the pool."""
        return self._released and self._pins == 0

    def block_at(self, position: int) -> int:
        """Block id at index ``position`` without copying the table."""
        return self._block_ids[position]

    def extend(self, num_blocks: int) -> bool:
        """Add blocks at the end, all or none."""
        assert not self._released, "extend after release"
        if num_blocks > self._pool.num_free:
            return False
        self._take(num_blocks)
        return True

    def pin(self) -> None:
        assert not self.is_free, "pin of freed blocks"
        self._pins += 1

    def unpin(self) -> None:
        assert self._pins > 0, "unpin without pin"
        self._pins -= 1
        self._return_if_done()

    def release(self) -> None:
        """Give the blocks back as soon as nothing pins them. A second call does nothing."""
        if not self._released:
            self._released = True
            self._return_if_done()

    async def freed(self) -> None:
        """Return once the blocks are back in the pool: released, and the last reader is done."""
        while not self.is_free:
            if self._freed is None:
                self._freed = asyncio.Event()
            await self._freed.wait()

    def _take(self, num_blocks: int) -> None:
        self._block_ids.extend(self._pool._pop() for _ in range(num_blocks))

    def _return_if_done(self) -> None:
        if self._released and self._pins == 0:
            for block_id in reversed(self._block_ids):
                self._pool._push(block_id)
            self._block_ids.clear()
            if self._freed is not None:
                self._freed.set()

    def __del__(self) -> None:
        if self._block_ids and not self._released:
            warnings.warn(f"{len(self._block_ids)} KV blocks leaked", ResourceWarning, stacklevel=1)
