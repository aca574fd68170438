"""What the road asks of the memory it moves: blocks by number, held by a lease.

Satisfied by the engine's block pool without either side importing the other. Nothing here knows
tensors, sequences or sockets. Memory that no ``memoryview`` can show (on a device) is copied
through host memory; block_bytes.py hides the difference from both sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pdserve.types import KVLayout


class BlockCopier(Protocol):
    """Copies between host memory and blocks that the host cannot address.

    Copies run beside the event loop. A copy that has begun has ended when the call returns or
    raises, also when its caller is cancelled: pin the blocks for the call and they stay.
    """

    def staging(self, num_bytes: int) -> memoryview:
        """Writable host memory that copies go through fastest; free when no longer referred to."""

    async def read(self, block_ids: Sequence[int], out: memoryview) -> None:
        """Copy whole blocks out, one after another. Raises EngineFailure."""

    async def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        """Copy whole blocks in. Raises EngineFailure: their content is undefined then."""


class BlockBuffers(Protocol):
    """The memory behind a pool of KV blocks."""

    @property
    def layout(self) -> KVLayout: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def device(self) -> str:
        """For people."""

    @property
    def copier(self) -> BlockCopier | None:
        """None: the host addresses the blocks, ``view`` works. Else only this does."""

    @property
    def memory_fd(self) -> int | None:
        """A file in which block i begins at byte i * block_bytes; None: nobody else can map it."""

    def view(self, block_id: int) -> memoryview:
        """Writable bytes of one whole block, ``layout.block_bytes`` long, in layout order."""


class Lease(Protocol):
    """Blocks of one sequence, in order of position; back in the pool when released and unpinned."""

    @property
    def block_ids(self) -> tuple[int, ...]: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def num_cached(self) -> int:
        """Leading blocks that hold their KV already and are not to be written."""

    def block_at(self, position: int) -> int: ...

    def pin(self) -> None: ...

    def unpin(self) -> None: ...

    def release(self) -> None: ...
