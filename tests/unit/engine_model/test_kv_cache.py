"""KV memory: the tensor and the byte views are the same bytes in the layout's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.kv_cache import KvCache
from pdserve.types import KVLayout

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=8, block_size=4, dtype="float32")


def test_views_are_the_tensors_bytes() -> None:
    cache = KvCache(LAYOUT, 5, torch.device("cpu"))
    view = cache.view(2)
    assert len(view) == LAYOUT.block_bytes
    assert not view.readonly
    assert not any(view)
    cache.blocks[2, 1, 0, 1, 3] = torch.arange(8.0)
    shown = np.frombuffer(view, np.float32).reshape(3, 2, 2, 4, 8)
    assert shown[1, 0, 1, 3].tolist() == list(range(8))
    assert np.count_nonzero(shown) == 7
    view[:4] = np.float32(9.0).tobytes()
    assert cache.blocks[2, 0, 0, 0, 0, 0] == 9.0


def test_memory_is_page_aligned() -> None:
    cache = KvCache(LAYOUT, 5, torch.device("cpu"))
    assert cache.blocks.data_ptr() % 4096 == 0


def test_rows_of_a_layer_start_at_that_layer() -> None:
    cache = KvCache(LAYOUT, 2, torch.device("cpu"))
    cache.blocks[1, 2, 1, 0, 3] = 7.0
    row = ((1 * 3 * 2 + 1) * 2 + 0) * 4 + 3  # block 1, values, head 0, slot 3
    assert cache.token_rows(2)[row].tolist() == [7.0] * 8
    assert cache.block_rows(2)[(1 * 3 * 2 + 1) * 2][-8:].tolist() == [7.0] * 8


def test_views_outside_the_pool_are_refused() -> None:
    cache = KvCache(LAYOUT, 5, torch.device("cpu"))
    for block_id in (-1, 5, cache.zero_block_id):
        with pytest.raises(IndexError, match="block_id"):
            cache.view(block_id)
