from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.modelfiles.hf_config import parse_hf_config
from pdserve.errors import ModelFileError
from pdserve.prepared import ModelConfig, RopeScaling
from support.tiny_llama import LINEAR_ROPE_SCALING, LLAMA3_ROPE_SCALING

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
PLAIN = ModelConfig(
    architecture="llama",
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=RopeScaling(),
    max_positions=2048,
    tied_embeddings=True,
)
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 256)


def parse(**changes: Any) -> ModelConfig:
    return parse_hf_config("config.json", {**TINY, **changes})


def test_a_plain_config() -> None:
    assert parse() == PLAIN


def test_head_dim_may_be_explicit() -> None:
    assert parse(head_dim=32) == replace(PLAIN, head_dim=32)
    assert parse(head_dim=None) == PLAIN
    assert parse(head_dim=20, hidden_size=66).head_dim == 20


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("num_key_value_heads", ("num_kv_heads", 4)),
        ("rms_norm_eps", ("rms_norm_eps", 1e-6)),
        ("rope_theta", ("rope_theta", 10000.0)),
        ("max_position_embeddings", ("max_positions", 2048)),
        ("tie_word_embeddings", ("tied_embeddings", False)),
    ],
)
def test_absent_fields_take_the_defaults_of_llama(field: str, expected: tuple[str, Any]) -> None:
    document = {key: value for key, value in TINY.items() if key != field}
    assert parse_hf_config("config.json", document) == replace(PLAIN, **dict([expected]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_scaling": LLAMA3_ROPE_SCALING}, LLAMA3),
        ({"rope_scaling": {**LLAMA3_ROPE_SCALING, "type": "llama3"}}, LLAMA3),
        ({"rope_parameters": {**LLAMA3_ROPE_SCALING, "rope_theta": 10000.0}}, LLAMA3),
        ({"rope_scaling": LLAMA3_ROPE_SCALING, "rope_parameters": LLAMA3_ROPE_SCALING}, LLAMA3),
        ({"rope_scaling": LINEAR_ROPE_SCALING}, RopeScaling("linear", 2.0)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeScaling("linear", 2.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, RopeScaling()),
        ({"rope_scaling": None}, RopeScaling()),
    ],
)
def test_rope_scaling_in_both_spellings(changes: dict[str, Any], expected: RopeScaling) -> None:
    assert parse(**changes) == replace(PLAIN, rope_scaling=expected)


def test_rope_theta_from_rope_parameters_alone() -> None:
    document = {key: value for key, value in TINY.items() if key != "rope_theta"}
    document["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000}
    assert parse_hf_config("config.json", document).rope_theta == 500000.0


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"sliding_window": 4096},
        {"use_sliding_window": True},
        {"partial_rotary_factor": 0.5},
        {"quantization_config": {"quant_method": "gptq"}},
        {"pretraining_tp": 2},
        {"rope_interleaved": True},
        {"final_logit_softcapping": 30.0},
        {"attn_logit_softcapping": 50.0},
        {"embedding_multiplier": 12.0},
        {"residual_multiplier": 0.22},
        {"attention_multiplier": 0.01},
        {"logits_scaling": 8.0},
        {"num_local_experts": 8},
        {"no_rope_layers": [1, 0]},
        {"model_type": "gemma"},
        {"model_type": None},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ],
)
def test_what_would_change_the_output_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=rf"config\.json: field {next(iter(changes))}: "):
        parse(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": False, "mlp_bias": None, "pretraining_tp": 1, "sliding_window": None},
        {"layer_types": ["full_attention"] * 2, "rope_interleaved": False},
        {"is_llama_config": True, "transformers_version": "4.42.3", "torch_dtype": "bfloat16"},
    ],
)
def test_plain_values_are_accepted(changes: dict[str, Any]) -> None:
    assert parse(**changes) == PLAIN


MISTRAL = {**TINY, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = {**TINY, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {**TINY, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}
PHI3 = {**TINY, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1}


def test_mistral_without_a_window_is_a_plain_llama() -> None:
    assert parse_hf_config("config.json", {**MISTRAL, "sliding_window": None}) == PLAIN


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (QWEN2, replace(PLAIN, architecture="qwen2", qkv_bias=True)),
        (QWEN3, replace(PLAIN, architecture="qwen3", qk_norm=True)),
        (PHI3, replace(PLAIN, architecture="phi3")),
    ],
)
def test_what_a_family_adds(document: dict[str, Any], expected: ModelConfig) -> None:
    assert parse_hf_config("config.json", document) == expected


@pytest.mark.parametrize(
    ("document", "window"),
    [
        ({**MISTRAL, "sliding_window": 512}, 512),
        ({**PHI3, "sliding_window": 512}, 512),
        ({**PHI3, "sliding_window": None}, 0),
        (PHI3, 0),
        ({**QWEN2, **WINDOW}, 512),
        ({**QWEN3, **WINDOW}, 512),
        ({**QWEN2, **WINDOW, "use_sliding_window": False}, 0),
        ({**QWEN2, **WINDOW, "sliding_window": None}, 0),
        ({**QWEN2, **WINDOW, "max_window_layers": 2}, 0),  # of two layers none is past it
        ({**QWEN2, **WINDOW, "layer_types": [FULL, FULL]}, 0),
        ({**QWEN2, **WINDOW, "max_window_layers": 2, "layer_types": [FULL, SLIDING]}, 512),
    ],
)
def test_a_window_ends_the_context(document: dict[str, Any], window: int) -> None:
    config = parse_hf_config("config.json", document)
    assert (config.sliding_window, config.max_positions) == (window, window or 2048)


def test_a_window_longer_than_the_context() -> None:
    config = parse_hf_config("config.json", {**MISTRAL, "sliding_window": 4096})
    assert (config.sliding_window, config.max_positions) == (4096, 2048)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({**TINY, "sliding_window": 512}, "sliding_window"),  # Llama knows none
        ({**MISTRAL, "sliding_window": 0}, "sliding_window"),
        ({**MISTRAL, "sliding_window": 512, "use_sliding_window": True}, "use_sliding_window"),
        ({**QWEN2, "layer_types": [FULL, SLIDING]}, "layer_types"),  # without a window
        ({**QWEN2, **WINDOW, "layer_types": [FULL]}, "layer_types"),
        ({**QWEN2, **WINDOW, "layer_types": [FULL, "chunked_attention"]}, "layer_types"),
        ({**QWEN2, **WINDOW, "max_window_layers": -1}, "max_window_layers"),
        ({**QWEN2, "use_mrope": True}, "use_mrope"),
        ({**QWEN3, "attention_bias": True}, "attention_bias"),
        ({**PHI3, "partial_rotary_factor": 0.75}, "partial_rotary_factor"),
        ({**MISTRAL, "auto_map": {"AutoModelForCausalLM": "m.M"}}, "auto_map"),
    ],
)
def test_what_a_family_refuses(document: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelFileError, match=f"field {field}: "):
        parse_hf_config("config.json", document)


def test_phi3_folders_name_code_that_is_not_needed() -> None:
    parse_hf_config("config.json", {**PHI3, "auto_map": {"AutoModelForCausalLM": "m.M"}})


@pytest.mark.parametrize("kind", ["longrope", "su", "mrope", "proportional"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_other_rope_types_are_refused_by_name(field: str, kind: str) -> None:
    with pytest.raises(ModelFileError, match=f"{field}: field rope_type: '{kind}'"):
        parse(**{field: {"rope_type": kind, "factor": 4.0}})


def test_phi3_knows_no_rope_scaling_of_ours() -> None:
    with pytest.raises(ModelFileError, match="rope_scaling: field rope_type: 'yarn'"):
        parse_hf_config("config.json", {**PHI3, "rope_scaling": YARN})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def test_yarn_carries_the_context_further() -> None:
    config = parse(rope_scaling=YARN)
    attention_factor = 0.1 * math.log(4.0) + 1.0
    assert config.rope_scaling == RopeScaling(
        "yarn", 4.0, original_max_positions=1024, attention_factor=attention_factor
    )
    assert config.max_positions == 4096
    assert parse(rope_scaling=YARN, max_position_embeddings=8192).max_positions == 8192


def test_yarn_without_its_original_context_takes_the_stated_one() -> None:
    config = parse(rope_scaling={"rope_type": "yarn", "factor": 4.0})
    assert config.rope_scaling.original_max_positions == 2048
    assert config.max_positions == 8192


LONGROPE = {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize("name", ["longrope", "su"])
def test_longrope_ends_at_its_original_context(name: str) -> None:
    document = {**PHI3, "original_max_position_embeddings": 512}
    config = parse_hf_config("c", {**document, "rope_scaling": {**LONGROPE, "rope_type": name}})
    assert config.rope_scaling == RopeScaling(
        "longrope", 4.0, original_max_positions=512, short_factors=(1.5,) * 8,
        attention_factor=math.sqrt(1 + math.log(4) / math.log(512)),
    )  # fmt: skip
    assert config.max_positions == 512


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"short_factor": None}, "short_factor"),
        ({"short_factor": [1.0] * 7}, "short_factor"),
        ({"short_factor": [1.0] * 7 + [0.0]}, "short_factor"),
        ({"short_factor": [1.0] * 7 + [True]}, "short_factor"),
        ({"long_factor": [1.0] * 7 + ["2"]}, "long_factor"),
        ({"short_mscale": 1.2}, "short_mscale"),
    ],
)
def test_longrope_fields_are_checked_by_name(changes: dict[str, Any], field: str) -> None:
    rope = {**LONGROPE, **changes}
    with pytest.raises(ModelFileError, match=f"rope_scaling: field {field}: "):
        parse_hf_config("config.json", {**PHI3, "rope_scaling": rope})


def test_dynamic_ends_where_its_frequencies_would_change() -> None:
    config = parse(rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    assert (config.rope_scaling, config.max_positions) == (RopeScaling("dynamic", 4.0), 2048)


@pytest.mark.parametrize(
    ("rope", "field"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": -1.0}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5}, "attention_factor"),
        ({"rope_type": "default", "factor": 2.0}, "factor"),
        ({**LLAMA3_ROPE_SCALING, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**LLAMA3_ROPE_SCALING, "low_freq_factor": None}, "low_freq_factor"),
        ({**LLAMA3_ROPE_SCALING, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "dynamic"}, "factor"),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0}, "alpha"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 0.5}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_slow": -1}, "beta_slow"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 1}, "truncate"),
        ({"rope_type": "yarn", "factor": 4.0, "mscale": "1"}, "mscale"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.0}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "extrapolation_factor": 1.0}, "extrapolation_factor"),
        (
            {**LLAMA3_ROPE_SCALING, "original_max_position_embeddings": 0},
            "original_max_position_embeddings",
        ),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
)
def test_rope_fields_are_checked_by_name(rope: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelFileError, match=f"rope_scaling: field {field}: "):
        parse(rope_scaling=rope)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LINEAR_ROPE_SCALING},
            "rope_scaling",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        (
            {"rope_scaling": LLAMA3_ROPE_SCALING, "original_max_position_embeddings": 128},
            "original_max_position_embeddings",
        ),
        ({"rope_theta": 1.0}, "rope_theta"),
    ],
)
def test_rope_spellings_that_contradict(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelFileError, match=f"field {field}: "):
        parse(**changes)


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ],
)
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "64", True])
def test_sizes_must_be_there_and_positive(field: str, value: Any) -> None:
    with pytest.raises(ModelFileError, match=f"field {field}: "):
        parse(**{field: value})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"num_hidden_layers": 2**31}, "2147483648 layers"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"hidden_size": 65}, "hidden_size: 65 is not a multiple of 4 heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ],
)
def test_values_that_do_not_fit(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelFileError, match=problem):
        parse(**changes)


def test_the_config_as_a_file_keeps_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    assert parse_hf_config(str(path), json.loads(path.read_text())) == PLAIN
