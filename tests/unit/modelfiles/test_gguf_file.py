from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

from engine.modelfiles.gguf_file import open_gguf_file
from engine.modelfiles.gguf_header import read_gguf_header
from engine.modelfiles.gguf_names import to_gguf_name
from engine.modelfiles.mapped_file import map_file
from engine.modelfiles.prepare import prepare_model
from engine.modelfiles.tensor_plan import plan_tensors
from pdserve.errors import ModelFileError
from support.tiny_gguf import write_tiny_gguf
from support.tiny_llama import random_tensors

TINY: dict[str, Any] = {
    "seed": 0, "num_layers": 2, "hidden": 64, "intermediate": 128, "q_size": 64, "kv_size": 32,
    "vocab": 320, "tied": True,
}  # fmt: skip


def read_all(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    checkpoint = open_gguf_file(path)
    return {
        part.name: checkpoint.tensors.read(part.name, part.shape).to_dtype("float32").values
        for tensor in plan_tensors(checkpoint.config)
        for part in tensor.parts
    }


def rounded(array: np.ndarray[Any, Any], weight_type: str) -> np.ndarray[Any, Any]:
    if array.ndim == 1:
        return array
    kind = GGMLQuantizationType[weight_type]
    return quants.dequantize(quants.quantize(array, kind), kind)


@pytest.mark.parametrize(
    "weight_type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
)
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_comes_back(tmp_path: Path, weight_type: str, tied: bool) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", weight_type=weight_type, tied=tied)
    tensors = read_all(path)
    expected = random_tensors(**{**TINY, "tied": tied})
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], rounded(array, weight_type), err_msg=name)


def test_the_header_agrees_with_the_gguf_library(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", weight_type="Q4_1")
    theirs = GGUFReader(path)
    ours = read_gguf_header(path, map_file(path))
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.start, found.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert (found.type, found.shape) == (tensor.tensor_type, tuple(tensor.shape[::-1].tolist()))
    assert len(ours.tensors) == len(theirs.tensors)
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == value


def test_names() -> None:
    assert to_gguf_name("model.layers.13.mlp.up_proj.weight") == "blk.13.ffn_up.weight"
    assert to_gguf_name("lm_head.weight") == "output.weight"


@pytest.mark.parametrize("weight_type", ["MXFP4", "TQ1_0"])
def test_other_types_are_refused_by_name(tmp_path: Path, weight_type: str) -> None:
    hidden = 256 if weight_type == "TQ1_0" else 64
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf", weight_type=weight_type, hidden=hidden, intermediate=hidden
    )
    with pytest.raises(ModelFileError, match=rf"token_embd\.weight: type {weight_type}; F32"):
        read_all(path)


def test_truncated_tensors_are_named(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"tensor output_norm\.weight: truncated"):
        open_gguf_file(path)


def test_a_header_cut_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    first_tensor = min(
        tensor.start for tensor in read_gguf_header(path, map_file(path)).tensors.values()
    )
    for length in range(1, first_tensor, 97):
        with pytest.raises(ModelFileError, match="truncated|not a GGUF"):
            read_gguf_header(path, memoryview(data[:length]))


def test_a_damaged_header_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", vocab=259)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    num_refused = 0
    for position in rng.integers(0, 12_000, 400):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            open_gguf_file(path)
        except ModelFileError:
            num_refused += 1
    assert num_refused > 50


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"GGML" + b"\0" * 32, "not a GGUF file"),
        (b"GGUF" + (1).to_bytes(4, "little") + b"\0" * 32, "version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + b"\0" * 32, "version 50331648"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\0" * 16, r"architecture: missing"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=problem):
        open_gguf_file(path)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"x\.gguf: missing"):
        open_gguf_file(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"blk.1.ffn_up.weight": None}, r"tensor blk\.1\.ffn_up\.weight: missing"),
        ({"token_embd.weight": None}, r"tensor token_embd\.weight: missing"),
        (
            {"blk.0.attn_q.weight": np.zeros((32, 64), np.float32)},
            r"tensor blk\.0\.attn_q\.weight: shape \[32, 64\], the metadata asks for \[64, 64\]",
        ),
        ({"blk.0.attn_q.bias": np.zeros(64, np.float32)}, r"tensor blk\.0\.attn_q\.bias: not part"),
        ({"blk.2.attn_norm.weight": np.zeros(64, np.float32)}, r"tensor blk\.2\.attn_norm"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, tensors: dict[str, Any], problem: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensors=tensors)
    with pytest.raises(ModelFileError, match=problem):
        read_all(path)


def test_a_file_in_parts_is_the_same_model(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf", weight_type="Q8_0")
    first = write_tiny_gguf(tmp_path / "split", weight_type="Q8_0", num_parts=3)
    expected = prepare_model(str(whole), "float32", cache_dir=tmp_path / "cache")
    for number in (1, 3):  # any part stands for all
        part = first.with_name(f"split-{number:05d}-of-00003.gguf")
        found = prepare_model(str(part), "float32", cache_dir=tmp_path / "cache")
        assert (found.name, found.fingerprint) == ("split", expected.fingerprint)
        assert found.weights_path.read_bytes() == expected.weights_path.read_bytes()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = write_tiny_gguf(tmp_path / "split", num_parts=3)
    first.with_name("split-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelFileError, match=r"split-00002-of-00003\.gguf: missing; split-00001"):
        open_gguf_file(first)


def test_parts_that_are_not_what_their_names_say(tmp_path: Path) -> None:
    first = write_tiny_gguf(tmp_path / "split", num_parts=2)
    second = first.with_name("split-00002-of-00002.gguf")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelFileError, match=r"split-00002-of-00002\.gguf: split\.no: 0, not 1"):
        open_gguf_file(first)
    renamed = first.rename(tmp_path / "whole.gguf")
    with pytest.raises(ModelFileError, match=r"whole\.gguf: split\.count: 2, the name says 1"):
        open_gguf_file(renamed)
    odd = renamed.rename(tmp_path / "x-00003-of-00002.gguf")
    with pytest.raises(ModelFileError, match="part 3 of 2"):
        open_gguf_file(odd)


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    for number in (0, 1):
        write_tiny_gguf(
            tmp_path / f"x-{number + 1:05d}-of-00002.gguf",
            metadata={"split.no": number, "split.count": 2},
        )
    with pytest.raises(ModelFileError, match=r"x-00002.*tensor token_embd\.weight: also in .*x-0"):
        open_gguf_file(tmp_path / "x-00001-of-00002.gguf")


def test_changed_parts_are_prepared_anew(tmp_path: Path) -> None:
    first = write_tiny_gguf(tmp_path / "split", num_parts=2)
    before = prepare_model(str(first), "float32", cache_dir=tmp_path / "cache")
    write_tiny_gguf(tmp_path / "split", num_parts=2, seed=1)
    after = prepare_model(str(first), "float32", cache_dir=tmp_path / "cache")
    assert after.fingerprint != before.fingerprint
