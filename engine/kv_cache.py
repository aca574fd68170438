"""The memory of a KV pool: one tensor, and the same bytes block by block for the road.

    blocks [num_blocks + 2, layers, 2, kv_heads, block_size, head_dim], zero at the start

One block is contiguous, in ``KVLayout.order``. The two after the last are never leased. The first
stays zero: batches of unequal length point there where a sequence has no block. The second is a
sink: rows that pad a recorded step (decode_graphs.py) write there. Where none is recorded it is
never touched and takes no memory. On a CPU the memory is
a file without a name, which the road may show to another process (pdserve/memory_file.py); pages of
blocks that come next are made ahead of writers that ask for a ``view`` (fresh_pages.py). On another
device blocks are copied through host memory (staged_blocks.py). Satisfies BlockBuffers.
Knows nothing of who holds which block (block_pool.py). Not covered: device memory shared between
processes.
"""

from __future__ import annotations

import torch

from engine.devices import wait_for_device
from engine.fresh_pages import FreshPages
from engine.staged_blocks import StagedBlocks
from pdserve.memory_file import MemoryFile
from pdserve.types import KVLayout

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

RESERVED_BLOCKS = 2  # zeros, sink


class KvCache:
    """KV of ``num_blocks`` blocks on ``device``; ``close`` when no copy runs.

    Raises:
        MemoryError, OSError, torch.OutOfMemoryError: the memory is not there.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        self._layout = layout
        self._num_blocks = num_blocks
        self._device = device
        dtype = TORCH_DTYPES[layout.dtype]
        shape = (
            num_blocks + RESERVED_BLOCKS, layout.num_layers, 2, layout.num_kv_heads,
            layout.block_size, layout.head_dim,
        )  # fmt: skip
        self._bytes: memoryview | None = None
        self._file: MemoryFile | None = None
        self._fresh: FreshPages | None = None
        if device.type == "cpu":
            size_bytes = (num_blocks + RESERVED_BLOCKS) * layout.block_bytes
            self._file = MemoryFile(size_bytes, "pdserve-kv")
            self._bytes = self._file.view
            self._fresh = FreshPages(self._file.mapping, num_blocks, layout.block_bytes)
            self.blocks = torch.frombuffer(self._file.mapping, dtype=dtype).view(shape)
        else:
            self.blocks = torch.zeros(shape, dtype=dtype, device=device)
            wait_for_device(device)  # copies run on another stream
        self._copier = StagedBlocks(self.blocks, num_blocks) if self._bytes is None else None

    @property
    def layout(self) -> KVLayout:
        return self._layout

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def zero_block_id(self) -> int:
        """A block that holds zeros and is never written."""
        return self._num_blocks

    @property
    def sink_block_id(self) -> int:
        """A block that anybody may write; what it holds is finite and means nothing."""
        return self._num_blocks + 1

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def memory_fd(self) -> int | None:
        """None on another device than a CPU, and where there is no memfd."""
        return None if self._file is None else self._file.fd

    @property
    def copier(self) -> StagedBlocks | None:
        """None on a CPU."""
        return self._copier

    def view(self, block_id: int) -> memoryview:
        """Writable bytes of one block.

        Raises:
            IndexError: no such block.
            ValueError: the pool lies on a device whose memory the CPU cannot address.
        """
        if self._bytes is None:
            raise ValueError(f"no byte view of KV on {self._device}")
        if not 0 <= block_id < self._num_blocks:
            raise IndexError(f"block_id: {block_id}, the pool holds {self._num_blocks}")
        if self._fresh is not None:
            self._fresh.reached(block_id)
        start = block_id * self._layout.block_bytes
        return self._bytes[start : start + self._layout.block_bytes]

    def close(self) -> None:
        """End the threads that copy or make pages, where there are any."""
        if self._fresh is not None:
            self._fresh.close()
        if self._copier is not None:
            self._copier.close()

    def token_rows(self, layer: int) -> torch.Tensor:
        """Rows [_, head_dim], from ``layer`` on; row numbers of batch_plan.py fit every layer."""
        layout = self._layout
        skipped = layer * 2 * layout.num_kv_heads * layout.block_size
        return self.blocks.view(-1, layout.head_dim)[skipped:]

    def block_rows(self, layer: int) -> torch.Tensor:
        """Rows [_, block_size * head_dim], one a (layer, k or v, head), from ``layer`` on."""
        layout = self._layout
        skipped = layer * 2 * layout.num_kv_heads
        return self.blocks.view(-1, layout.block_size * layout.head_dim)[skipped:]

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of ``layer``, each a view [blocks, kv_heads, block_size, head_dim].

        Kernels that follow block tables read the pool through them: a page is contiguous, pages lie
        a block apart, and both have the same strides.
        """
        return self.blocks[:, layer, 0], self.blocks[:, layer, 1]
