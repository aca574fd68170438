"""Matrices as int8 blocks: from any model, and byte for byte from a Q8_0 file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.modelfiles.block_array import BlockArray, to_blocks
from engine.modelfiles.costs import model_costs
from engine.modelfiles.number_formats import StoredArray
from engine.modelfiles.prepare import model_summary, prepare_model
from engine.modelfiles.weights import dequantised, map_weights
from pdserve.errors import ConfigError, ModelFileError
from pdserve.prepared import PreparedModel, kv_fingerprint
from support.tiny_gguf import write_tiny_gguf
from support.tiny_llama import write_tiny_llama

MATRICES = ("embed", "layers.1.qkv", "layers.1.o", "layers.1.gate_up", "layers.1.down")


def prepared_from(model: Path, weights: str, dtype: str = "float32") -> PreparedModel:
    return prepare_model(str(model), dtype, weights=weights, cache_dir=model.parent / "cache")


def test_blocks_are_within_half_a_step(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    full, blocks = (map_weights(prepared_from(folder, kind)) for kind in ("full", "int8"))
    for name in MATRICES:
        expected = full[name]
        found = dequantised(blocks, name, torch.float32)
        steps = expected.view(expected.shape[0], -1, 32).abs().amax(-1, keepdim=True) / 127
        error = (found - expected).view(expected.shape[0], -1, 32).abs()
        assert (error <= (0.5 + 0.08) * steps).all()  # half a step, and the scale's own rounding
        assert error.max() > 0
    assert torch.equal(blocks["norm"], full["norm"])


def test_a_q8_0_file_keeps_its_numbers(tmp_path: Path) -> None:
    """Through the rotary order of q and k too: as when it is decoded to float32 first."""
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", weight_type="Q8_0")
    decoded, blocks = (map_weights(prepared_from(gguf, kind)) for kind in ("full", "int8"))
    for name in MATRICES:
        assert torch.equal(dequantised(blocks, name, torch.float32), decoded[name])


def test_a_q8_0_file_gives_what_its_model_gives(tmp_path: Path) -> None:
    """Quantised when prepared, or by whoever wrote the file: the same bytes."""
    folder = write_tiny_llama(tmp_path / "tiny", seed=5)
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", seed=5, weight_type="Q8_0")
    ours, theirs = (map_weights(prepared_from(path, "int8")) for path in (folder, gguf))
    for name in MATRICES:
        assert torch.equal(ours[name], theirs[name])
        assert torch.equal(ours[name + ".scales"], theirs[name + ".scales"])


def test_fingerprints_share_their_kv_part_alone(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    full, int8 = prepared_from(folder, "full"), prepared_from(folder, "int8")
    narrow = prepared_from(folder, "int8", "bfloat16")
    assert full.fingerprint != int8.fingerprint
    assert kv_fingerprint(full.fingerprint) == kv_fingerprint(int8.fingerprint)
    assert kv_fingerprint(narrow.fingerprint) != kv_fingerprint(int8.fingerprint)
    assert (full.weights, int8.weights) == ("full", "int8")


def test_summary_counts_the_bytes(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    full, int8 = (model_summary(prepared_from(folder, kind)) for kind in ("full", "int8"))
    norms = 64 * 5
    matrices = full.num_parameters - norms
    assert int8.weight_bytes == norms * 4 + matrices + 2 * matrices // 32
    assert int8.num_parameters == full.num_parameters
    shape = prepared_from(folder, "int8").config
    assert model_costs(shape, "float32", "int8").weight_bytes == int8.weight_bytes
    assert model_costs(shape, "float32").weight_bytes == full.weight_bytes
    assert int8.layer_flops_per_token == full.layer_flops_per_token
    assert int8.kv_bytes_per_token == full.kv_bytes_per_token


def test_rows_that_do_not_divide_are_named(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", hidden=48, num_heads=4, num_kv_heads=2)
    with pytest.raises(ModelFileError, match=r"embed_tokens.*rows of 48 numbers.*blocks of 32"):
        prepared_from(folder, "int8")


def test_a_prepared_folder_of_other_weights_is_refused(tmp_path: Path) -> None:
    prepared = prepared_from(write_tiny_llama(tmp_path / "tiny"), "full")
    with pytest.raises(ModelFileError, match="full weights, int8 ones are asked for"):
        prepared_from(prepared.folder, "int8")


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="weights: 'int4'"):
        prepared_from(folder, "int4")


def test_scales_beyond_float16_are_refused() -> None:
    blocks = to_blocks(StoredArray(np.full((1, 32), 1e9, np.float32), "float32"))
    assert not blocks.is_finite()


def test_damaged_scales_are_found() -> None:
    values = np.zeros((2, 64), np.int8)
    scales = np.array([[1, 2], [math.nan, 1]], np.float16)
    assert not BlockArray(values, scales).is_finite()
    assert BlockArray(values, scales).rows(slice(0, 1)).is_finite()
