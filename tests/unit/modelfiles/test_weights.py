from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.modelfiles.prepare import prepare_model
from engine.modelfiles.weights import map_weights
from pdserve.errors import ModelFileError
from pdserve.prepared import PreparedModel, TensorEntry, read_prepared
from support.tiny_llama import random_tensors, write_tiny_llama


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedModel:
    folder = write_tiny_llama(tmp_path / "tiny")
    return prepare_model(str(folder), "float32", cache_dir=tmp_path / "cache")


def test_tensors_have_the_values_of_the_checkpoint(prepared: PreparedModel) -> None:
    weights = map_weights(prepared)
    assert weights.keys() == prepared.tensors.keys()
    expected = random_tensors(
        seed=0, num_layers=2, hidden=64, intermediate=128, q_size=64, kv_size=32, vocab=320,
        tied=True,
    )  # fmt: skip
    embed = weights["embed"]
    assert (embed.dtype, embed.is_contiguous()) == (torch.float32, True)
    np.testing.assert_array_equal(embed.numpy(), expected["model.embed_tokens.weight"])


def test_bfloat16_is_what_torch_rounds_to(tmp_path: Path, prepared: PreparedModel) -> None:
    narrow = prepare_model(str(tmp_path / "tiny"), "bfloat16", cache_dir=tmp_path / "cache")
    wide_weights, narrow_weights = map_weights(prepared), map_weights(narrow)
    for name, wide in wide_weights.items():
        assert torch.equal(narrow_weights[name], wide.to(torch.bfloat16)), name


def test_float16_is_what_torch_rounds_to(tmp_path: Path, prepared: PreparedModel) -> None:
    narrow = prepare_model(str(tmp_path / "tiny"), "float16", cache_dir=tmp_path / "cache")
    narrow_weights = map_weights(narrow)
    for name, wide in map_weights(prepared).items():
        assert torch.equal(narrow_weights[name], wide.to(torch.float16)), name


def test_tensors_outlive_the_call_and_the_file_name(prepared: PreparedModel) -> None:
    norm = map_weights(prepared)["norm"]
    expected = norm.clone()
    prepared.weights_path.unlink()
    assert torch.equal(norm, expected)


def test_a_write_stays_in_this_process(prepared: PreparedModel) -> None:
    before = prepared.weights_path.read_bytes()
    map_weights(prepared)["norm"].zero_()
    assert prepared.weights_path.read_bytes() == before
    assert map_weights(prepared)["norm"].any()


def test_a_truncated_file_names_the_cut_tensor(prepared: PreparedModel) -> None:
    path = prepared.weights_path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"weights\.bin: tensor norm: truncated"):
        map_weights(prepared)


def test_no_file(prepared: PreparedModel) -> None:
    prepared.weights_path.unlink()
    with pytest.raises(ModelFileError, match=r"weights\.bin: missing"):
        map_weights(prepared)


def without_norm(tensors: dict[str, TensorEntry]) -> None:
    del tensors["norm"]


def with_a_stranger(tensors: dict[str, TensorEntry]) -> None:
    tensors["stranger"] = tensors["norm"]


def with_another_shape(tensors: dict[str, TensorEntry]) -> None:
    tensors["norm"] = replace(tensors["norm"], shape=(63,))


def with_another_dtype(tensors: dict[str, TensorEntry]) -> None:
    tensors["norm"] = replace(tensors["norm"], dtype="int8")


def before_the_start(tensors: dict[str, TensorEntry]) -> None:
    tensors["norm"] = replace(tensors["norm"], offset_bytes=-4096)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_norm, "tensor norm: missing in the manifest"),
        (with_a_stranger, "tensor stranger: shape"),
        (with_another_shape, r"tensor norm: shape \[63\] in the manifest"),
        (with_another_dtype, "tensor norm: dtype 'int8'"),
        (before_the_start, "tensor norm: truncated"),
    ],
)
def test_a_manifest_that_does_not_fit(
    prepared: PreparedModel, change: Callable[[dict[str, TensorEntry]], None], problem: str
) -> None:
    tensors = dict(prepared.tensors)
    change(tensors)
    with pytest.raises(ModelFileError, match=problem):
        map_weights(replace(prepared, tensors=tensors))


@pytest.mark.parametrize("document", [[], {"format_version": 1}, {"format_version": 0}, "x"])
def test_a_manifest_that_is_none(prepared: PreparedModel, document: Any) -> None:
    (prepared.folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match=r"manifest\.json: "):
        read_prepared(prepared.folder)


def test_a_manifest_with_tensors_of_another_kind(prepared: PreparedModel) -> None:
    path = prepared.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensors": []}))
    with pytest.raises(ModelFileError, match=r"manifest\.json: field missing or of a wrong kind"):
        read_prepared(prepared.folder)
