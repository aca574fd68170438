from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.modelfiles.gguf_config import find_llama3_scaling
from engine.modelfiles.gguf_file import open_gguf_file
from engine.modelfiles.hf_folder import open_hf_folder
from pdserve.errors import ModelFileError
from pdserve.prepared import ModelConfig, RopeScaling
from support.tiny_families import write_tiny_family
from support.tiny_gguf import write_family_gguf, write_tiny_gguf
from support.tiny_llama import write_tiny_llama


def config_of(folder: Path, **changes: Any) -> ModelConfig:
    """With metadata keys below ``llama.``, dots as double underscores."""
    metadata = {"llama." + key.replace("__", "."): value for key, value in changes.items()}
    return open_gguf_file(write_tiny_gguf(folder / "tiny.gguf", metadata=metadata)).config


def factors_of_llama_cpp(
    theta: float, head_dim: int, factor: float, original: int
) -> np.ndarray[Any, Any]:
    """As convert_hf_to_gguf.py works them out, one frequency after the other."""
    low, high = 1.0, 4.0
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_the_same_config_as_from_the_folder(tmp_path: Path) -> None:
    from_folder = open_hf_folder(write_tiny_llama(tmp_path / "tiny")).config
    assert config_of(tmp_path) == from_folder


def test_untied_and_absent_keys(tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf",
        tied=False,
        num_kv_heads=4,
        metadata={
            "llama.attention.head_count_kv": None,
            "llama.rope.freq_base": None,
            "llama.rope.dimension_count": None,
            "llama.vocab_size": None,
        },
    )
    config = open_gguf_file(path).config
    assert not config.tied_embeddings
    assert (config.num_kv_heads, config.rope_theta, config.head_dim) == (4, 10000.0, 16)
    assert config.vocab_size == 320


@pytest.mark.parametrize(
    "changes",
    [
        {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0},
        {"rope__scaling__factor": 2.0},
        {"rope__scale_linear": 2.0},
    ],
)
def test_linear_scaling(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert config_of(tmp_path, **changes).rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope__scaling__type": "none", "rope__scaling__factor": 2.0},
        {"rope__scaling__type": "linear", "rope__scaling__factor": 1.0},
        {"rope__scale_linear": 1.0},
    ],
)
def test_scaling_that_scales_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert config_of(tmp_path, **changes).rope_scaling == RopeScaling()


def test_plain_values_of_other_keys(tmp_path: Path) -> None:
    plain = config_of(tmp_path)
    assert config_of(tmp_path, expert_count=0, attention__causal=True, logit_scale=1.0) == plain


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope__scaling__type", "dynamic"),
        ("rope__scaling__attn_factor", 1.19),
        ("rope__scaling__yarn_attn_factor", 1.2),
        ("rope__scaling__yarn_log_multiplier", 0.1),
        ("rope__freq_base", 1.0),
        ("rope__scaling__type", "longrope"),
        ("expert_count", 8),
        ("attention__sliding_window", "4096"),
        ("attention__clamp_kqv", 8.0),
        ("logit_scale", 0.0625),
        ("embedding_scale", 12.0),
        ("residual_scale", 0.22),
        ("attention__scale", 0.01),
        ("attention__causal", False),
        ("use_parallel_residual", True),
        ("some_new_trick", 1),
        ("attention__value_length", 32),
        ("rope__dimension_count", 8),
        ("block_count", None),
        ("context_length", None),
        ("embedding_length", None),
        ("feed_forward_length", [128, 128]),
        ("attention__layer_norm_rms_epsilon", None),
        ("attention__layer_norm_rms_epsilon", 1),
        ("attention__head_count", "4"),
    ],
)
def test_keys_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    if key == "attention__layer_norm_rms_epsilon" and value == 1:
        assert config_of(tmp_path, **{key: value}).rms_norm_eps == 1.0  # a whole number will do
        return
    with pytest.raises(ModelFileError, match=f"field llama.{key.replace('__', '.')}: "):
        config_of(tmp_path, **{key: value})


def test_another_architecture(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "x.gguf", metadata={"general.architecture": "gemma3"})
    with pytest.raises(ModelFileError, match="field general.architecture: 'gemma3'; llama, phi3"):
        open_gguf_file(path)


@pytest.mark.parametrize(("window", "expected"), [(0, 2048), (512, 512), (4096, 2048)])
def test_a_window_ends_the_context(tmp_path: Path, window: int, expected: int) -> None:
    config = config_of(tmp_path, attention__sliding_window=window)
    assert (config.sliding_window, config.max_positions) == (window, expected)


def test_phi3_must_state_its_window(tmp_path: Path) -> None:
    """Old files lack it, whether or not the model has one."""
    peer = write_tiny_family(tmp_path / "phi3", "phi3")
    path = write_family_gguf(tmp_path / "x.gguf", peer, attention__sliding_window=None)
    with pytest.raises(ModelFileError, match=r"phi3\.attention\.sliding_window: missing"):
        open_gguf_file(path)


def test_yarn(tmp_path: Path) -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    config = config_of(tmp_path, **yarn, rope__scaling__original_context_length=1024)
    assert config.rope_scaling == RopeScaling(
        "yarn", 4.0, original_max_positions=1024, attention_factor=0.1 * math.log(4.0) + 1.0
    )
    assert config.max_positions == 4096
    betas = {"rope__scaling__yarn_beta_fast": 16.0, "rope__scaling__yarn_beta_slow": 0.7}
    scaling = config_of(tmp_path, **yarn, **betas).rope_scaling
    assert (scaling.original_max_positions, scaling.beta_fast, scaling.beta_slow) == (
        2048, 16.0, 0.7
    )  # fmt: skip


def test_heads_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="3 key-value heads"):
        config_of(tmp_path, attention__head_count_kv=3)


@pytest.mark.parametrize(
    ("factor", "original", "theta", "head_dim"),
    [(8.0, 8192, 500000.0, 128), (32.0, 8192, 500000.0, 64), (8.0, 256, 10000.0, 16)],
)
def test_llama3_scaling_is_found_from_its_factors(
    factor: float, original: int, theta: float, head_dim: int
) -> None:
    factors = factors_of_llama_cpp(theta, head_dim, factor, original)
    found = find_llama3_scaling("x.gguf", factors, theta, head_dim)
    assert found == RopeScaling("llama3", factor, 1.0, 4.0, original)


def test_llama3_scaling_in_a_file(tmp_path: Path) -> None:
    plain = config_of(tmp_path)
    factors = factors_of_llama_cpp(10000.0, 16, 8.0, 256)
    path = write_tiny_gguf(tmp_path / "x.gguf", tensors={"rope_freqs.weight": factors})
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 256)
    assert open_gguf_file(path).config == replace(plain, rope_scaling=scaling)


def test_factors_of_one_scale_nothing() -> None:
    assert find_llama3_scaling("x", np.ones(8, np.float32), 10000.0, 16) == RopeScaling()


@pytest.mark.parametrize(
    "factors",
    [
        np.linspace(1, 8, 8, dtype=np.float32),  # of some other scaling
        np.ones(4, np.float32),
        np.full(8, np.nan, np.float32),
        np.zeros(8, np.float32),
    ],
)
def test_other_factors_are_refused(factors: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ModelFileError, match=r"tensor rope_freqs\.weight"):
        find_llama3_scaling("x.gguf", factors, 10000.0, 16)


def test_two_scalings_at_once(tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tmp_path / "x.gguf",
        metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
        tensors={"rope_freqs.weight": factors_of_llama_cpp(10000.0, 16, 8.0, 256)},
    )
    with pytest.raises(ModelFileError, match=r"rope\.scaling\.factor: together with rope_freqs"):
        open_gguf_file(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope__scaling__type": "yarn"}, r"phi3\.rope\.scaling\.type: 'yarn'"),
        ({"rope__scaling__original_context_length": None}, "original_context_length: missing"),
        ({"embedding_length": 32}, r"tensor rope_factors_short\.weight: must be 4 positive"),
    ],
)
def test_longrope_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    peer = write_tiny_family(tmp_path / "phi3", "phi3, longrope")
    dimensions = {"rope__dimension_count": None} if "embedding_length" in changes else {}
    path = write_family_gguf(tmp_path / "x.gguf", peer, **changes, **dimensions)
    with pytest.raises(ModelFileError, match=problem):
        open_gguf_file(path)


def test_longrope_keeps_another_attention_factor(tmp_path: Path) -> None:
    peer = write_tiny_family(tmp_path / "phi3", "phi3, longrope")
    path = write_family_gguf(tmp_path / "x.gguf", peer, rope__scaling__attn_factor=1.5)
    config = open_gguf_file(path).config
    assert (config.rope_scaling.attention_factor, config.max_positions) == (1.5, 512)
