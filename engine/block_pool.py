"""KV blocks by number: who holds them, who is still reading them, what free ones still contain.

A lease is a handle that holds blocks. Blocks return to the pool when the lease is released *and*
nothing pins it: a running step, a KV read and a parking copy pin what they touch, so release is
always safe to call at once and takes effect when the last reader is done.

    leased --release()--> released, pinned --last unpin()--> free, or still held by others
       |                                                     ^
       +------------------release(), no pins-----------------+

A full block whose content has a name (``store``) may be held by several leases at once and keeps
its content while it is free: a later lease can take it as it is (``find``, ``lease(shared=...)``).
Free blocks are given away in the order in which they are evicted: those without content first,
then the least recently held; of one lease the last block first, since a block is of no use without
those before it. Owned by the event loop thread. Knows neither tensors nor roles.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from engine.block_index import BlockIndex
from pdserve.prefix_keys import BlockKey
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

    @property
    def memory_fd(self) -> int | None:
        """A file in which block i begins at byte i * block_bytes; None: nobody else can map it."""

    def view(self, block_id: int) -> memoryview:
        """Writable bytes of one whole block, ``layout.block_bytes`` long, in layout order.

        Raises ValueError if there is a ``copier``.
        """


class BlockPool:
    """``num_blocks`` blocks, each free or held by one or more leases.

    Free ones without content are reused last-in, first-out.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, not {num_blocks}")
        self.num_blocks = num_blocks
        self.index = BlockIndex()
        self._num_holders = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))  # free, content unknown
        self._spare: OrderedDict[int, None] = OrderedDict()  # free, content known; next one first

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, with or without known content."""
        return len(self._blank) + len(self._spare)

    @property
    def num_blank(self) -> int:
        """Free blocks without known content."""
        return len(self._blank)

    @property
    def num_stored(self) -> int:
        """Blocks whose content is known, held or free."""
        return len(self.index)

    def lease(self, num_blocks: int, shared: SequenceOf[int] = ()) -> BlockLease | None:
        """All ``num_blocks`` blocks, the first of them ``shared``, or None and nothing.

        ``shared`` is what ``find`` gave in this turn of the event loop.
        """
        num_new = num_blocks - len(shared)
        assert num_new >= 0, "more shared blocks than asked for"
        if num_new + self.num_unheld(shared) > self.num_free:
            return None
        lease = BlockLease(self, shared)
        lease._take(num_new)
        return lease

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """Blocks of the longest run of known content from the first key on."""
        return self.index.find(keys)

    def num_unheld(self, block_ids: Iterable[int]) -> int:
        """How many of these are free."""
        return sum(not self._num_holders[block_id] for block_id in block_ids)

    def forget(self, keys: Iterable[BlockKey]) -> None:
        """Blocks with this content are not to be shared any more; who holds them keeps them."""
        for key in keys:
            block_id = self.index.block_of(key)
            if block_id is None:
                continue
            self.index.drop(block_id)
            if not self._num_holders[block_id]:
                del self._spare[block_id]
                self._blank.append(block_id)

    def _pop(self) -> int:
        if self._blank:
            block_id = self._blank.pop()
        else:
            block_id, _ = self._spare.popitem(last=False)
            self.index.drop(block_id)
        assert not self._num_holders[block_id], f"block {block_id} is held"
        self._num_holders[block_id] = 1
        return block_id

    def _join(self, block_id: int) -> None:
        """One more holder of a block with known content."""
        if not self._num_holders[block_id]:
            del self._spare[block_id]
        self._num_holders[block_id] += 1

    def _leave(self, block_id: int) -> None:
        """One holder less; the last one makes it free."""
        assert self._num_holders[block_id], f"block {block_id} returned twice"
        self._num_holders[block_id] -= 1
        if self._num_holders[block_id]:
            return
        if block_id in self.index:
            self._spare[block_id] = None
        else:
            self._blank.append(block_id)


class BlockLease:
    """Blocks of one sequence, in order of position. Satisfies kvtransfer's ``Lease``.

    The first ``num_cached`` blocks came with their content and may have other holders: they are
    read only.
    """

    __slots__ = (
        "__weakref__", "_block_ids", "_freed", "_num_stored", "_pins", "_pool", "_released",
        "num_cached",
    )  # fmt: skip

    def __init__(self, pool: BlockPool, shared: SequenceOf[int] = ()) -> None:
        self._pool = pool
        for block_id in shared:
            pool._join(block_id)
        self._block_ids: list[int] = list(shared)
        self.num_cached = self._num_stored = len(shared)
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

    @property
    def num_shared(self) -> int:
        """Blocks with other holders: they stay held when this lease is released."""
        return sum(self._pool._num_holders[block_id] > 1 for block_id in self._block_ids)

    @property
    def num_stored(self) -> int:
        """Leading blocks whose content was named."""
        return self._num_stored

    def store(self, keys: SequenceOf[BlockKey], num_blocks: int) -> None:
        """The first ``num_blocks`` blocks hold what ``keys`` say, for good: others may share them.

        A key that another block has already keeps that block.
        """
        assert not self._released, "store after release"
        for position in range(self._num_stored, num_blocks):
            self._pool.index.store(keys[position], self._block_ids[position])
        self._num_stored = max(self._num_stored, num_blocks)

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
                self._pool._leave(block_id)
            self._block_ids.clear()
            if self._freed is not None:
                self._freed.set()

    def __del__(self) -> None:
        if self._block_ids and not self._released:
            warnings.warn(f"{len(self._block_ids)} KV blocks leaked", ResourceWarning, stacklevel=1)
