"""KV from blocks of one layout into blocks of another: block size, dtype, a part of the heads.

Values are copied as they are or rounded to nearest even (torch's conversion); bfloat16 to float32
and back gives the same bits. Host memory alone. Knows neither frames nor leases; whether two
layouts can be converted at all is ``KVLayout.first_obstacle``'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pdserve.types import KVLayout


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks of one sequence, one after another; ``first_token`` is that of the first block.

    ``pieces``: the bytes of one block each, ``layout.block_bytes`` long.
    """

    layout: KVLayout
    pieces: Sequence[memoryview]
    first_token: int


def copy_tokens(source: BlockRun, target: BlockRun, tokens: range) -> None:
    """Copy these tokens, of the heads that both have; what else the target holds stays.

    ``tokens`` lie in both runs.
    """
    heads = range(
        max(source.layout.first_kv_head, target.layout.first_kv_head),
        min(_end_head(source.layout), _end_head(target.layout)),
    )
    start = tokens.start
    while start < tokens.stop:
        end = min(tokens.stop, _end_of_block(source, start), _end_of_block(target, start))
        _slots(target, start, end, heads).copy_(_slots(source, start, end, heads))
        start = end


def _end_head(layout: KVLayout) -> int:
    return layout.first_kv_head + layout.num_kv_heads


def _end_of_block(run: BlockRun, token: int) -> int:
    size = run.layout.block_size
    return token + size - (token - run.first_token) % size


def _slots(run: BlockRun, start: int, end: int, heads: range) -> torch.Tensor:
    """A view of tokens within one block: [layer, k or v, head, token, dim]."""
    layout = run.layout
    index, offset = divmod(start - run.first_token, layout.block_size)
    block = torch.frombuffer(run.pieces[index], dtype=getattr(torch, layout.dtype)).view(
        layout.num_layers, 2, layout.num_kv_heads, layout.block_size, layout.head_dim
    )
    first = heads.start - layout.first_kv_head
    return block[:, :, first : first + len(heads), offset : offset + end - start]
