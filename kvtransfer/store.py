"""What the road asks of the memory it moves: blocks by number, held by a lease.

Satisfied by the engine's block pool without either side importing the other. Nothing here knows
tensors, sequences or sockets. Not covered: memory that no ``memoryview`` can show (device memory).
"""

from __future__ import annotations

from typing import Protocol

from pdserve.types import KVLayout


class BlockBuffers(Protocol):
    """The memory behind a pool of KV blocks."""

    @property
    def layout(self) -> KVLayout: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def device(self) -> str:
        """ "cpu" if ``view`` works."""

    def view(self, block_id: int) -> memoryview:
        """Writable bytes of one whole block, ``layout.block_bytes`` long, in layout order."""


class Lease(Protocol):
    """Blocks of one sequence, in order of position; back in the pool when released and unpinned."""

    @property
    def block_ids(self) -> tuple[int, ...]: ...

    @property
    def num_blocks(self) -> int: ...

    def block_at(self, position: int) -> int: ...

    def pin(self) -> None: ...

    def unpin(self) -> None: ...

    def release(self) -> None: ...
