from __future__ import annotations

import json
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


def test_mistral_without_a_window_is_a_plain_llama() -> None:
    assert parse_hf_config("config.json", {**MISTRAL, "sliding_window": None}) == PLAIN


def test_mistral_with_a_window_is_refused_by_name() -> None:
    with pytest.raises(ModelFileError, match="field sliding_window: 4096"):
        parse_hf_config("config.json", {**MISTRAL, "sliding_window": 4096})


@pytest.mark.parametrize(
    "field", ["sliding_window", "num_key_value_heads", "max_position_embeddings"]
)
def test_mistral_states_what_llama_would_default_otherwise(field: str) -> None:
    document = {**MISTRAL, "sliding_window": None}
    del document[field]
    with pytest.raises(ModelFileError, match=f"field {field}: missing"):
        parse_hf_config("config.json", document)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "su", "mrope"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_other_rope_types_are_refused_by_name(field: str, kind: str) -> None:
    with pytest.raises(ModelFileError, match=f"{field}: field rope_type: '{kind}'"):
        parse(**{field: {"rope_type": kind, "factor": 4.0}})


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
