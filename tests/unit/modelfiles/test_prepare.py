from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from engine.modelfiles.prepare import model_summary, prepare_model
from pdserve.errors import ConfigError, ModelFileError
from pdserve.prepared import PreparedModel, read_prepared
from support.tiny_gguf import write_tiny_gguf
from support.tiny_llama import CHAT_TEMPLATE, random_tensors, write_checkpoint, write_tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names_below(cache: Path) -> set[str]:
    return {path.name for path in (cache / "models").iterdir()}


def stored_values(prepared: PreparedModel, name: str) -> np.ndarray[tuple[int, ...], np.dtype]:  # type: ignore[type-arg]
    entry = prepared.tensors[name]
    kind = {"float32": np.float32, "bfloat16": np.uint16}[entry.dtype]
    count = int(np.prod(entry.shape))
    data = np.fromfile(prepared.weights_path, kind, count, offset=entry.offset_bytes)
    return data.reshape(entry.shape)


def test_a_folder_becomes_a_prepared_one(folder: Path, cache: Path) -> None:
    prepared = prepare_model(str(folder), "float32", cache_dir=cache)
    assert prepared == read_prepared(prepared.folder)
    assert prepared.folder.parent == cache / "models"
    assert prepared.folder.name.startswith("tiny-")
    assert prepared.folder.name.endswith("-float32")
    assert (prepared.name, prepared.dtype, prepared.source) == ("tiny", "float32", str(folder))
    assert (prepared.bos_token_id, prepared.eos_token_ids, prepared.adds_bos) == (1, (2,), False)
    assert prepared.chat_template == CHAT_TEMPLATE
    assert prepared.tokenizer_path.read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert {path.name for path in prepared.folder.iterdir()} == {
        "manifest.json",
        "weights.bin",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert all(entry.offset_bytes % 4096 == 0 for entry in prepared.tensors.values())


@pytest.mark.parametrize("source", ["hf", "gguf"])
def test_fused_tensors_are_their_parts_stacked(tmp_path: Path, cache: Path, source: str) -> None:
    if source == "hf":
        model = write_tiny_llama(tmp_path / "tiny", tied=False)
    else:
        model = write_tiny_gguf(tmp_path / "tiny.gguf", tied=False)
    prepared = prepare_model(str(model), "float32", cache_dir=cache)
    tensors = random_tensors(
        seed=0, num_layers=2, hidden=64, intermediate=128, q_size=64, kv_size=32, vocab=320,
        tied=False,
    )  # fmt: skip
    layer = "model.layers.1."
    qkv = [tensors[f"{layer}self_attn.{part}_proj.weight"] for part in "qkv"]
    gate_up = [tensors[f"{layer}mlp.{part}_proj.weight"] for part in ("gate", "up")]
    for name, expected in {
        "embed": tensors["model.embed_tokens.weight"],
        "layers.1.qkv": np.concatenate(qkv),
        "layers.1.gate_up": np.concatenate(gate_up),
        "layers.1.o": tensors[layer + "self_attn.o_proj.weight"],
        "layers.1.down": tensors[layer + "mlp.down_proj.weight"],
        "layers.1.input_norm": tensors[layer + "input_layernorm.weight"],
        "layers.1.post_norm": tensors[layer + "post_attention_layernorm.weight"],
        "norm": tensors["model.norm.weight"],
        "lm_head": tensors["lm_head.weight"],
    }.items():
        np.testing.assert_array_equal(stored_values(prepared, name), expected, err_msg=name)


def test_both_formats_of_one_model_compute_the_same(
    tmp_path: Path, folder: Path, cache: Path
) -> None:
    from_folder = prepare_model(str(folder), "float32", cache_dir=cache)
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf")
    from_gguf = prepare_model(str(gguf), "float32", cache_dir=cache)
    assert from_gguf.config == from_folder.config
    assert from_gguf.tensors == from_folder.tensors
    assert from_gguf.weights_path.read_bytes() == from_folder.weights_path.read_bytes()


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_every_stored_dtype_gives_both_prepared_ones(
    tmp_path: Path, cache: Path, stored: str
) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", dtype=stored)
    wide = prepare_model(str(folder), "float32", cache_dir=cache)
    narrow = prepare_model(str(folder), "bfloat16", cache_dir=cache)
    bits = stored_values(wide, "layers.0.qkv").view(np.uint32)
    error = (stored_values(narrow, "layers.0.qkv").astype(np.int64) << 16) - bits
    assert abs(error).max() <= 0x8000  # half a unit in the last place of bfloat16
    assert (error == 0).all() == (stored == "bfloat16")


def test_the_second_time_nothing_is_done(folder: Path, cache: Path) -> None:
    lines: list[str] = []
    first = prepare_model(str(folder), "float32", cache_dir=cache, progress=lines.append)
    assert lines[0].startswith("preparing tiny")
    num_lines = len(lines)
    written = first.weights_path.stat().st_mtime_ns
    second = prepare_model(str(folder), "float32", cache_dir=cache, progress=lines.append)
    assert second == first
    assert len(lines) == num_lines
    assert second.weights_path.stat().st_mtime_ns == written


def test_a_changed_source_is_prepared_anew(folder: Path, cache: Path) -> None:
    first = prepare_model(str(folder), "float32", cache_dir=cache)
    write_tiny_llama(folder, seed=1)
    second = prepare_model(str(folder), "float32", cache_dir=cache)
    assert second.folder != first.folder
    assert second.fingerprint != first.fingerprint


def test_digests_of_settled_files_are_remembered(folder: Path, cache: Path) -> None:
    prepare_model(str(folder), "float32", cache_dir=cache)
    assert not list((cache / "digests").iterdir())  # too young to be trusted by its times
    with pytest.MonkeyPatch.context() as patch:
        later = time.time() + 60
        patch.setattr(time, "time", lambda: later)
        prepare_model(str(folder), "float32", cache_dir=cache)
    memories = list((cache / "digests").iterdir())
    assert len(memories) == 6
    for memory in memories:  # proof that they are used: another digest is another model
        document = json.loads(memory.read_text())
        memory.write_text(json.dumps({**document, "digest": "0" * 32}))
    prepare_model(str(folder), "float32", cache_dir=cache)
    assert len(names_below(cache)) == 2
    for memory in memories:  # and that damaged ones are not
        memory.write_text("{")
    prepare_model(str(folder), "float32", cache_dir=cache)
    assert len(names_below(cache)) == 2


def test_fingerprints_tell_weights_tokenizer_and_dtype_apart(tmp_path: Path, cache: Path) -> None:
    models = {
        "plain": write_tiny_llama(tmp_path / "a"),
        "same": write_tiny_llama(tmp_path / "b", num_shards=2),
        "weights": write_tiny_llama(tmp_path / "c", seed=1),
        "tokenizer": write_tiny_llama(tmp_path / "d"),
        "theta": write_tiny_llama(tmp_path / "e", rope_theta=500000.0),
        "eos": write_tiny_llama(tmp_path / "f", config_changes={"eos_token_id": [2, 0]}),
    }
    tokenizer = json.loads((models["tokenizer"] / "tokenizer.json").read_text())
    tokenizer["model"]["ignore_merges"] = True
    (models["tokenizer"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    prints = {
        name: prepare_model(str(model), "float32", cache_dir=cache).fingerprint
        for name, model in models.items()
    }
    prints["dtype"] = prepare_model(str(models["plain"]), "bfloat16", cache_dir=cache).fingerprint
    assert prints.pop("same") == prints["plain"]
    assert len(set(prints.values())) == len(prints)


def test_two_at_once_both_succeed(folder: Path, cache: Path) -> None:
    both_began = Barrier(2, timeout=30)

    def wait_for_the_other(line: str) -> None:
        if line.startswith("preparing"):
            both_began.wait()

    def prepare(_: int) -> PreparedModel:
        return prepare_model(str(folder), "float32", cache_dir=cache, progress=wait_for_the_other)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, range(2))
    assert first == second
    assert names_below(cache) == {first.folder.name}


def test_a_failed_prepare_leaves_nothing(folder: Path, cache: Path) -> None:
    tensors = random_tensors(
        seed=0, num_layers=2, hidden=64, intermediate=128, q_size=64, kv_size=32, vocab=320,
        tied=True,
    )  # fmt: skip
    tensors["model.norm.weight"][3] = np.nan
    write_checkpoint(folder, tensors, dtype="float32")
    with pytest.raises(ModelFileError, match=rf"{folder}: tensor model\.norm\.weight: holds inf"):
        prepare_model(str(folder), "float32", cache_dir=cache)
    assert names_below(cache) == set()


def test_what_a_killed_prepare_left_is_never_read_and_goes_in_time(
    folder: Path, cache: Path
) -> None:
    fresh, stale = cache / "models" / ".partial-fresh", cache / "models" / ".partial-stale"
    for partial in (fresh, stale):
        partial.mkdir(parents=True)
        (partial / "weights.bin").write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86400
    os.utime(stale, (two_days_ago, two_days_ago))
    prepared = prepare_model(str(folder), "float32", cache_dir=cache)
    assert names_below(cache) == {prepared.folder.name, ".partial-fresh"}


def test_a_prepared_folder_is_used_where_it_lies(folder: Path, cache: Path, tmp_path: Path) -> None:
    prepared = prepare_model(str(folder), "float32", cache_dir=cache)
    other_cache = tmp_path / "other"
    again = prepare_model(str(prepared.folder), "float32", cache_dir=other_cache)
    assert again == prepared
    assert not other_cache.exists()


def test_a_prepared_folder_of_another_dtype(folder: Path, cache: Path) -> None:
    prepared = prepare_model(str(folder), "float32", cache_dir=cache)
    with pytest.raises(ModelFileError, match="prepared as float32, bfloat16 is asked for"):
        prepare_model(str(prepared.folder), "bfloat16", cache_dir=cache)


@pytest.mark.parametrize("lost", ["weights.bin", "tokenizer.json", "manifest.json"])
def test_a_prepared_folder_that_lost_a_file(folder: Path, cache: Path, lost: str) -> None:
    prepared = prepare_model(str(folder), "float32", cache_dir=cache)
    (prepared.folder / lost).unlink()
    with pytest.raises(ModelFileError, match=lost):
        prepare_model(str(folder), "float32", cache_dir=cache)


def test_another_dtype_is_refused(folder: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="dtype: 'int8'; one of float32, bfloat16, float16"):
        prepare_model(str(folder), "int8", cache_dir=cache)


def test_numbers_beyond_float16_are_refused_by_tensor(tmp_path: Path, cache: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    tensors = random_tensors(
        seed=0, num_layers=2, hidden=64, intermediate=128, q_size=64, kv_size=32, vocab=320,
        tied=True,
    )  # fmt: skip
    tensors["model.norm.weight"][3] = 65520.0  # rounds to infinity
    write_checkpoint(folder, tensors, dtype="float32")
    with pytest.raises(ModelFileError, match=r"norm\.weight: .* beyond the range of float16"):
        prepare_model(str(folder), "float16", cache_dir=cache)
    prepare_model(str(folder), "bfloat16", cache_dir=cache)


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelFileError, match=r"cannot be written.*PDSERVE_CACHE"):
        prepare_model(str(folder), "float32", cache_dir=tmp_path / "file")


def test_the_cache_is_where_the_environment_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDSERVE_CACHE", str(tmp_path / "elsewhere"))
    prepared = prepare_model(str(folder), "float32")
    assert prepared.folder.parent == tmp_path / "elsewhere" / "models"


def test_a_context_cut_short_is_told(tmp_path: Path, cache: Path) -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    folder = write_tiny_llama(tmp_path / "tiny", config_changes={**mistral, "sliding_window": 512})
    lines: list[str] = []
    prepared = prepare_model(str(folder), "float32", cache_dir=cache, progress=lines.append)
    assert "tiny: the context ends at its sliding window, 512 tokens" in lines
    assert model_summary(prepared).sliding_window_tokens == 512


def test_odd_names_stay_inside_the_cache(tmp_path: Path, cache: Path) -> None:
    folder = write_tiny_llama(tmp_path / "my model; v2")
    prepared = prepare_model(str(folder), "float32", cache_dir=cache)
    assert prepared.name == "my model; v2"
    assert prepared.folder.name.startswith("my-model-v2-")


@pytest.mark.parametrize("tied", [True, False])
def test_the_summary(tmp_path: Path, cache: Path, tied: bool) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", tied=tied)
    summary = model_summary(prepare_model(str(folder), "bfloat16", cache_dir=cache))
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128  # qkv, o, gate + up + down
    embeddings = 320 * 64 * (1 if tied else 2)
    assert summary.num_parameters == 2 * (layer + 2 * 64) + 64 + embeddings
    assert summary.weight_bytes == 2 * summary.num_parameters
    assert summary.layer_flops_per_token == 2 * 2 * layer
    assert summary.head_flops_per_token == 2 * 320 * 64
    assert summary.flops_per_token == 2 * (2 * layer + 320 * 64)
    assert summary.attention_flops_per_context_token == 2 * (2 + 2) * 64
    assert summary.kv_bytes_per_token == 2 * 2 * 32 * 2
    assert (summary.architecture, summary.max_positions_tokens) == ("llama", 2048)
