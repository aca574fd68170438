from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from engine.modelfiles.hf_folder import hf_source_files, open_hf_folder
from engine.modelfiles.safetensors_file import SafetensorsFile
from engine.modelfiles.tensor_plan import plan_tensors
from pdserve.errors import ModelFileError
from support.tiny_llama import random_tensors, write_checkpoint, write_json, write_tiny_llama

TINY: dict[str, Any] = {
    "seed": 0, "num_layers": 2, "hidden": 64, "intermediate": 128, "q_size": 64, "kv_size": 32,
    "vocab": 320, "tied": True,
}  # fmt: skip
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


def rewrite_header(path: Path, name: str, changes: dict[str, Any]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[name].update(changes)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_every_planned_tensor_is_read_as_written(
    tmp_path: Path, num_shards: int, tied: bool
) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", tied=tied, num_shards=num_shards)
    checkpoint = open_hf_folder(folder)
    expected = random_tensors(**{**TINY, "tied": tied})
    parts = [part for tensor in plan_tensors(checkpoint.config) for part in tensor.parts]
    assert {part.name for part in parts} == expected.keys()
    for part in parts:
        values = checkpoint.tensors.read(part.name, part.shape).values
        np.testing.assert_array_equal(values, expected[part.name])


def test_planned_shapes_stack_their_parts(folder: Path) -> None:
    shapes = {t.name: t.shape for t in plan_tensors(open_hf_folder(folder).config)}
    assert shapes["layers.1.qkv"] == (64 + 2 * 32, 64)
    assert shapes["layers.1.gate_up"] == (256, 64)
    assert shapes["norm"] == (64,)
    assert "lm_head" not in shapes


def test_files_of_the_safetensors_library_are_read(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
    path = tmp_path / "x.safetensors"
    safetensors_numpy.save_file(tensors, path, metadata={"format": "np"})
    opened = SafetensorsFile(path)
    assert opened.names == {"a", "b"}
    np.testing.assert_array_equal(opened.read("a", (2, 3)).values, tensors["a"])
    np.testing.assert_array_equal(opened.read("b", (4,)).values, tensors["b"])


def test_the_tiny_checkpoint_is_readable_by_the_safetensors_library(folder: Path) -> None:
    theirs = safetensors_numpy.load_file(folder / "model.safetensors")
    for name, array in random_tensors(**TINY).items():
        np.testing.assert_array_equal(theirs[name], array)


def test_a_truncated_file_names_the_cut_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    checkpoint = open_hf_folder(folder)
    with pytest.raises(ModelFileError, match=r"tensor model\.norm\.weight: truncated"):
        checkpoint.tensors.read("model.norm.weight", (64,))


@pytest.mark.parametrize("content", [b"", b"\x10", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_file_that_is_no_safetensors(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: "):
        open_hf_folder(folder)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dtype": "I8"}, "dtype 'I8'"),
        ({"dtype": "F8_E4M3"}, "dtype 'F8_E4M3'"),
        ({"shape": [32, 128]}, r"shape \[32, 128\], the config asks for \[64, 64\]"),
        ({"shape": [64, 63]}, "bytes do not hold"),
        ({"shape": [-64, -64]}, "unusable shape"),
        ({"data_offsets": [0]}, "unusable shape or data_offsets"),
        ({"data_offsets": [2**40, 2**40 + 64 * 64 * 4]}, "truncated"),
    ],
)
def test_a_header_entry_that_does_not_fit(
    folder: Path, changes: dict[str, Any], problem: str
) -> None:
    rewrite_header(folder / "model.safetensors", Q_PROJ, changes)
    checkpoint = open_hf_folder(folder)
    with pytest.raises(ModelFileError, match=rf"tensor {Q_PROJ}: .*{problem}"):
        checkpoint.tensors.read(Q_PROJ, (64, 64))


def test_a_missing_tensor(folder: Path) -> None:
    tensors = random_tensors(**TINY)
    del tensors[Q_PROJ]
    write_checkpoint(folder, tensors, dtype="float32")
    with pytest.raises(ModelFileError, match=f"tensor {Q_PROJ}: missing"):
        open_hf_folder(folder).tensors.read(Q_PROJ, (64, 64))


def test_an_untied_model_without_its_head(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "tie_word_embeddings": False})
    with pytest.raises(ModelFileError, match=r"tensor lm_head\.weight: missing"):
        open_hf_folder(folder).tensors.read("lm_head.weight", (320, 64))


def test_a_tensor_nobody_uses_is_refused(folder: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    write_checkpoint(folder, {**random_tensors(**TINY), **bias}, dtype="float32")
    with pytest.raises(ModelFileError, match=r"tensor model\.layers\.0\.self_attn\.q_proj\.bias"):
        open_hf_folder(folder)


def test_copies_and_derived_tensors_are_let_pass(folder: Path) -> None:
    extra = {
        "lm_head.weight": np.zeros((320, 64), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
    }
    write_checkpoint(folder, {**random_tensors(**TINY), **extra}, dtype="float32")
    assert open_hf_folder(folder).config.tied_embeddings


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"neither model\.safetensors nor"):
        open_hf_folder(folder)


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", num_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model-00002-of-00002\.safetensors: missing"):
        open_hf_folder(folder)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("{}", "field weight_map: missing"),
        ('{"weight_map": {"a": "../outside.safetensors"}}', "not the name of a file beside it"),
        ('{"weight_map": {"a": 7}}', "not the name of a file beside it"),
        ("[]", "must be a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_an_unusable_index(folder: Path, index: str, problem: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(index)
    with pytest.raises(ModelFileError, match=rf"index\.json.*{problem}"):
        open_hf_folder(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "missing"), ("{", "not JSON"), ("[]", "must be a JSON object")],
)
def test_an_unusable_config(folder: Path, content: str | None, problem: str) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelFileError, match=rf"config\.json: {problem}"):
        open_hf_folder(folder)


def test_source_files_are_all_that_decide(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", num_shards=2)
    (folder / "README.md").write_text("not a source")
    assert {path.name for path in hf_source_files(folder)} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
