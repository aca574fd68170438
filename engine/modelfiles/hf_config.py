"""config.json of a Hugging Face folder to ``ModelConfig``, for the families of families.py.

A field whose value would change what the model computes is either honoured or refused by name. A
sliding window is honoured by ending the context where it would begin to cut. The rotary settings
are hf_rope.py's. Not covered: other architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.modelfiles.checkpoint import check_config
from engine.modelfiles.families import FAMILIES, Family
from engine.modelfiles.field_reader import FieldReader, shorten
from engine.modelfiles.hf_rope import parse_rope
from pdserve.prepared import ModelConfig

# Fields that some checkpoint or some release of transformers has, with the values under which they
# change nothing. Null always counts as absent.
_PLAIN: dict[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
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
    "use_mrope": (False,),
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def parse_hf_config(where: str, document: Mapping[str, Any]) -> ModelConfig:
    """``where`` is named in errors. Absent fields take the family's defaults, sizes have none.

    Raises:
        ModelFileError: another architecture, a field that is missing, of a wrong kind, or whose
            value is not supported.
    """
    fields = FieldReader(where, document)
    family = _read_family(fields)
    fields.refuse_unless({**_PLAIN, **family.plain}, "is not supported")
    hidden_size = fields.positive_int("hidden_size")
    num_heads = fields.positive_int("num_attention_heads")
    num_layers = fields.positive_int("num_hidden_layers")
    stated_positions = fields.positive_int("max_position_embeddings", family.max_positions)
    head_dim = _head_dim(fields, family, hidden_size, num_heads)
    rope = parse_rope(fields, family, stated_positions, head_dim)
    max_positions = rope.max_positions(stated_positions)
    window = _sliding_window(fields, family, num_layers)
    config = ModelConfig(
        architecture=family.architecture,
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, family, num_heads),
        head_dim=head_dim,
        rms_norm_eps=fields.positive_float("rms_norm_eps", family.rms_norm_eps),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        max_positions=min(max_positions, window or max_positions),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window=window,
    )
    check_config(config, where)
    return config


def _read_family(fields: FieldReader) -> Family:
    model_type = fields.text("model_type", "absent")
    family = FAMILIES.get(model_type)
    if family is None:
        raise fields.error("model_type", f"{model_type!r}; of {sorted(FAMILIES)} only")
    expected = [family.model_class]
    architectures = fields.values.get("architectures", expected)
    if architectures != expected:
        raise fields.error(
            "architectures", f"{shorten(architectures)}; only {expected} is supported"
        )
    auto_map = fields.values.get("auto_map")
    if isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map and not family.ships_code:
        raise fields.error("auto_map", "the model brings its own code, which is never run")
    return family


def _num_kv_heads(fields: FieldReader, family: Family, num_heads: int) -> int:
    """An explicit null means one for each head in every family; absence does not."""
    is_absent = "num_key_value_heads" not in fields.values
    default = family.num_kv_heads if is_absent and family.num_kv_heads else num_heads
    return fields.positive_int("num_key_value_heads", default)


def _head_dim(fields: FieldReader, family: Family, hidden_size: int, num_heads: int) -> int:
    default = family.head_dim if "head_dim" not in fields.values else None
    if not fields.has("head_dim") and default is None and hidden_size % num_heads:
        raise fields.error("hidden_size", f"{hidden_size} is not a multiple of {num_heads} heads")
    return fields.positive_int("head_dim", default or hidden_size // num_heads)


def _sliding_window(fields: FieldReader, family: Family, num_layers: int) -> int:
    """Tokens a query sees in the layers that have a window; 0 if no layer has one."""
    layer_types = _layer_types(fields, num_layers)
    window = _stated_window(fields, family)
    if family.has_window_switch:
        first_layer = fields.count("max_window_layers", 28)
        is_anywhere = _SLIDING in layer_types if layer_types else first_layer < num_layers
        if not fields.flag("use_sliding_window", False) or not is_anywhere:
            window = 0
    if _SLIDING in layer_types and not window:
        raise fields.error("layer_types", f"{_SLIDING}, but no sliding window is set")
    return window


def _stated_window(fields: FieldReader, family: Family) -> int:
    """Null means none; absence the family's default."""
    default = None if "sliding_window" in fields.values else family.sliding_window
    if not family.has_window or (default is None and not fields.has("sliding_window")):
        return 0
    return fields.positive_int("sliding_window", default)


def _layer_types(fields: FieldReader, num_layers: int) -> list[str]:
    """One a layer, or none at all where the field is absent or null."""
    kinds = fields.values.get("layer_types")
    if kinds is None:
        return []
    if not isinstance(kinds, list) or any(kind not in (_FULL, _SLIDING) for kind in kinds):
        raise fields.error("layer_types", f"{shorten(kinds)}; {_FULL} and {_SLIDING} are known")
    if len(kinds) != num_layers:
        raise fields.error("layer_types", f"{len(kinds)} entries for {num_layers} layers")
    return kinds
