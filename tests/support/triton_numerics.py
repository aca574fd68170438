"""Run as a process of its own: the Triton kernels in Triton's interpreter, against the plain twin.

The interpreter is chosen by an environment variable that is read when Triton is imported. Prints
one JSON object: the largest difference of each case, whether rows kept their bits in other batches.
Not covered: bfloat16, whose products this interpreter (Triton 3.7) computes on the bit patterns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch

from engine.kv_cache import KvCache
from engine.paged_attention import plain_paged_decode
from engine.triton_decode import triton_paged_decode
from pdserve.types import KVLayout

# (query heads, KV heads, head dim, block size, keys of each row): heads that no power of two
# divides, one head, parts that end just before, at and after a cut.
CASES = (
    (4, 2, 16, 16, (1, 17, 130)),
    (3, 1, 24, 4, (5, 64, 65)),
    (9, 3, 64, 16, (511, 512, 513)),
)


def main() -> None:
    differences, kept = {}, []
    for dtype in ("float32", "float16"):
        for case in CASES:
            cache, queries, tables, key_lens = _inputs(dtype, *case)
            outs = [torch.full_like(queries, torch.nan) for _ in range(2)]
            pages = cache.pages(1)
            triton_paged_decode(queries, *pages, tables, key_lens, outs[0])
            plain_paged_decode(queries.to(cache.blocks.dtype), *pages, tables, key_lens, outs[1])
            differences[f"{dtype} {case}"] = float((outs[0] - outs[1]).abs().max())
            kept += list(_rows_alone(queries, pages, tables, key_lens, outs[0]))
    json.dump({"differences": differences, "kept": all(kept), "rows": len(kept)}, sys.stdout)


def _inputs(
    dtype: str, heads: int, kv_heads: int, head_dim: int, block_size: int, lens: tuple[int, ...]
) -> tuple[KvCache, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(dtype) + heads)
    layout = KVLayout(2, kv_heads, head_dim, block_size, dtype)
    width = layout.num_blocks(max(lens))
    cache = KvCache(layout, width * len(lens), torch.device("cpu"))
    cache.blocks.normal_(generator=generator)
    order = torch.randperm(width * len(lens), generator=generator)
    tables = order.view(len(lens), width).to(torch.int32)
    queries = torch.randn((len(lens), heads, head_dim), generator=generator)
    return cache, queries, tables, torch.tensor(lens, dtype=torch.int32)


def _rows_alone(
    queries: torch.Tensor, pages: tuple[torch.Tensor, torch.Tensor], tables: torch.Tensor,
    key_lens: torch.Tensor, together: torch.Tensor,
) -> Iterator[bool]:  # fmt: skip
    """Whether each row has the bits it had in the batch, with a wider table too."""
    for row in range(len(queries)):
        wide = torch.cat([tables[row : row + 1], torch.zeros((1, 99), dtype=torch.int32)], 1)
        out = torch.empty_like(queries[row : row + 1])
        lens = key_lens[row : row + 1]
        triton_paged_decode(queries[row : row + 1], *pages, wide.contiguous(), lens, out)
        yield torch.equal(out[0], together[row])


if __name__ == "__main__":
    main()
