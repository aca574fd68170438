"""config.json of a Hugging Face folder to ``ModelConfig``: Llama, and Mistral without its window.

A field whose value would change what the model computes is either honoured or refused by name.
Both spellings of the rotary settings are read: ``rope_theta`` + ``rope_scaling``, and the newer
``rope_parameters``. Not covered: other architectures, rotary scaling other than linear and llama3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.modelfiles.checkpoint import check_config
from engine.modelfiles.field_reader import FieldReader, shorten
from pdserve.prepared import ModelConfig, RopeScaling

# Fields that some checkpoint or some release of transformers has, with the values under which the
# model is a plain Llama. Null always counts as absent.
_PLAIN_LLAMA: dict[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "sliding_window": (),
    "use_sliding_window": (False,),
    "quantization_config": (),
    "compression_config": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "logit_scale": (1.0,),
    "use_qk_norm": (False,),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "no_rope_layers": ([],),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "alibi": (False,),
}
_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# Mistral's defaults differ from Llama's here (an absent window means 4096), so none is guessed.
_MISTRAL_STATED = ("sliding_window", "num_key_value_heads", "max_position_embeddings")
_ROPE_TYPES = {"default": "none", "linear": "linear", "llama3": "llama3"}
_ROPE_FIELDS = {
    "none": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
}


def parse_hf_config(where: str, document: Mapping[str, Any]) -> ModelConfig:
    """``where`` is named in errors. Absent fields take LlamaConfig's defaults, sizes have none.

    Raises:
        ModelFileError: another architecture, a field that is missing, of a wrong kind, or whose
            value is not supported.
    """
    fields = FieldReader(where, document)
    _check_architecture(fields)
    fields.refuse_unless(_PLAIN_LLAMA, "is not supported")
    hidden_size = fields.positive_int("hidden_size")
    num_heads = fields.positive_int("num_attention_heads")
    if not fields.has("head_dim") and hidden_size % num_heads:
        raise fields.error("hidden_size", f"{hidden_size} is not a multiple of {num_heads} heads")
    rope_theta, rope_scaling = _parse_rope(fields)
    config = ModelConfig(
        architecture="llama",
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("intermediate_size"),
        num_layers=fields.positive_int("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.positive_int("num_key_value_heads", num_heads),
        head_dim=fields.positive_int("head_dim", hidden_size // num_heads),
        rms_norm_eps=fields.positive_float("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_positions=fields.positive_int("max_position_embeddings", 2048),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
    )
    check_config(config, where)
    return config


def _check_architecture(fields: FieldReader) -> None:
    model_type = fields.text("model_type", "absent")
    if model_type not in _CLASSES:
        raise fields.error("model_type", f"{model_type!r}; of {sorted(_CLASSES)} only")
    expected = [_CLASSES[model_type]]
    architectures = fields.values.get("architectures", expected)
    if architectures != expected:
        raise fields.error(
            "architectures", f"{shorten(architectures)}; only {expected} is supported"
        )
    if model_type == "mistral":
        for name in _MISTRAL_STATED:
            if name not in fields.values:
                raise fields.error(name, "missing")
    auto_map = fields.values.get("auto_map")
    if isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map:
        raise fields.error("auto_map", "the model brings its own code, which is never run")
    layer_types = fields.values.get("layer_types") or []
    if any(kind != "full_attention" for kind in layer_types):
        raise fields.error("layer_types", "only full_attention layers are supported")


def _parse_rope(fields: FieldReader) -> tuple[float, RopeScaling]:
    """(theta, scaling) from whichever spelling is there; both must agree if both are."""
    parameters = _rope_fields(fields, "rope_parameters")
    legacy = _rope_fields(fields, "rope_scaling")
    theta = fields.positive_float("rope_theta", 10000.0)
    if parameters is None:
        return theta, _parse_scaling(legacy)
    scaling = _parse_scaling(parameters)
    if legacy is not None and _parse_scaling(legacy) != scaling:
        raise fields.error("rope_scaling", "contradicts rope_parameters")
    new_theta = parameters.positive_float("rope_theta", theta)
    if fields.has("rope_theta") and theta != new_theta:
        raise fields.error("rope_theta", f"{theta} contradicts {new_theta} in rope_parameters")
    return new_theta, scaling


def _rope_fields(fields: FieldReader, name: str) -> FieldReader | None:
    value = fields.values.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fields.error(name, f"{shorten(value)} is not an object")
    return FieldReader(f"{fields.where}: {name}", value)


def _parse_scaling(rope: FieldReader | None) -> RopeScaling:
    if rope is None:
        return RopeScaling()
    rope_type = rope.text("rope_type", rope.text("type", "default"))
    kind = _ROPE_TYPES.get(rope_type)
    if kind is None:
        raise rope.error("rope_type", f"{rope_type!r}; of {sorted(_ROPE_TYPES)} only")
    rope.refuse_unless({"partial_rotary_factor": (1.0,)}, "is not supported")
    _refuse_unknown(rope, kind)
    if kind == "none":
        return RopeScaling()
    factor = rope.positive_float("factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    scaling = RopeScaling(
        kind,
        factor,
        rope.positive_float("low_freq_factor"),
        rope.positive_float("high_freq_factor"),
        rope.positive_int("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise rope.error("high_freq_factor", "must be greater than low_freq_factor")
    return scaling


def _refuse_unknown(rope: FieldReader, kind: str) -> None:
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"} | _ROPE_FIELDS[kind]
    for name in rope.values:
        if name not in known and rope.has(name):
            raise rope.error(name, f"unknown for rope_type {rope.values.get('rope_type')!r}")
