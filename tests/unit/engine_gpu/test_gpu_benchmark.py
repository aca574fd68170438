"""The benchmark that is meant for an H100, dry: the same code on a CPU with a tiny shape, and whole
models of real shapes on torch's device without data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.random_model import prepared_model, random_weights, shape_named
from benchmarks.roofline import card_named, decode_fraction, prefill_fraction
from benchmarks.scenarios import engine
from engine.attention import RowPadding, TiledAttention
from engine.attention_ways import Attention
from engine.batch_plan import plan_batch
from engine.block_pool import BlockPool
from engine.kv_cache import KvCache
from engine.linear import choose_kernel
from engine.model import LlamaModel
from engine.modelfiles.costs import model_costs
from engine.paged_attention import PagedAttention
from engine.step import StepRow
from pdserve.types import KVLayout
from support.model_steps import open_sequence
from support.tiny_llama import write_tiny_llama


def test_a_dry_run(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny")
    parser = argparse.ArgumentParser()
    engine.add_arguments(parser)
    arguments = [
        f"--shape={tmp_path / 'tiny'}", "--card=H100", "--dtype=bfloat16", "--prefill", "40",
        "--decode", "1", "3", "--context=20", "--repeat=1", "--steps=2",
    ]  # fmt: skip
    result = engine.run(parser.parse_args(arguments))
    assert [row[0] for row in result.rows[1:]] == [
        "prefill 40",
        "decode b=1 at 20",
        "decode b=3 at 20",
    ]
    assert result.rows[0][-1] == "of H100"
    data = json.loads(json.dumps(result.data))
    assert all(0 < part < 1 for part in data["card"]["parts"].values())


def test_fractions_are_the_rooflines() -> None:
    """Llama-2-7B in 16 bits on an H100: 13.5 GB of weights at 3.35 TB/s are 4.0 ms a step."""
    costs, card = model_costs(shape_named("llama-2-7b"), "bfloat16"), card_named("H100", "bfloat16")
    assert 1 / decode_fraction(costs, card, 1, 1, 1.0) == pytest.approx(3.35e12 / 13.48e9, rel=1e-2)
    # 2,048 tokens are 13.2 GFLOP each and some attention: bound by compute.
    per_s = 1 / prefill_fraction(costs, card, 2048, 1.0)
    assert per_s == pytest.approx(989e12 / (2 * 6.607e9 + 2048 * 4096 * 32 * 2), rel=2e-2)


class Shapes:
    """Instead of a kernel: what it was given must fit the model."""

    def __init__(self, layout: KVLayout, num_heads: int) -> None:
        self.num_calls = 0
        self._layout, self._num_heads = layout, num_heads

    def __call__(
        self, queries: Any, keys: Any, values: Any, tables: Any, lens: Any, out: Any
    ) -> None:
        layout = self._layout
        self.num_calls += 1
        assert queries.shape == out.shape == (2, self._num_heads, layout.head_dim)
        assert keys.shape[1:] == (layout.num_kv_heads, layout.block_size, layout.head_dim)
        assert keys.stride() == values.stride()
        assert (tables.dtype, lens.shape) == (torch.int32, (2,))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b"])
def test_whole_models_without_data(name: str, dtype: str) -> None:
    """Every operation of a step keeps to shapes and dtypes; one that mixes in the CPU raises."""
    shape, meta = shape_named(name), torch.device("meta")
    layout = KVLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, 16, dtype)
    kernel = Shapes(layout, shape.num_heads)
    tiled = TiledAttention(shape.num_heads, RowPadding(8))
    attention: Attention = PagedAttention("shapes", kernel, tiled)
    weights = random_weights(shape, dtype, meta)
    pool = BlockPool(64)
    rows = [
        StepRow(open_sequence(pool, layout, range(start + count)), start, count, samples=True)
        for start, count in ((20, 1), (300, 1), (64, 70))
    ]
    with torch.inference_mode():
        model = LlamaModel(
            shape, weights, device=meta, kernel=choose_kernel([weights["embed"]], meta),
            attention=attention, num_positions=1024,
        )  # fmt: skip
        cache = KvCache(layout, 64, meta)
        plan = plan_batch(rows, layout, cache.zero_block_id, attention.grouped)
        logits = model.forward(plan, cache)
    assert (logits.shape, logits.dtype, logits.device) == (
        (3, shape.vocab_size),
        torch.float32,
        meta,
    )
    assert kernel.num_calls == shape.num_layers
    assert prepared_model(name, shape, dtype).num_parameters == sum(
        w.numel() for w in weights.values()
    )
    for row in rows:
        row.sequence.lease.release()
