"""Metadata of a GGUF file to ``ModelConfig``, for the families of families.py.

Every key of the architecture is either used, known to be plain at its value, or refused by name.
Llama 3's rotary scaling comes as a tensor of frequency factors (``rope_freqs.weight``) without the
numbers it was computed from; they are found again, so that the engine computes the same angles as
from the original folder. A GGUF file of Mistral says "llama" and does not carry its sliding window.
Longrope's divisors come as tensors too; the short ones are used. Not covered: mixtures of experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.modelfiles.checkpoint import check_config
from engine.modelfiles.families import BY_ARCHITECTURE, Family
from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.hf_rope import Rope, longrope_attention_factor, yarn_attention_factor
from pdserve.errors import ModelFileError
from pdserve.prepared import ModelConfig, RopeScaling

ROPE_FACTORS_TENSOR = "rope_freqs.weight"
SHORT_FACTORS_TENSOR = "rope_factors_short.weight"
LONG_FACTORS_TENSOR = "rope_factors_long.weight"

# Keys below "<architecture>.".
_USED_KEYS = frozenset({
    "block_count", "context_length", "embedding_length", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window",
    "vocab_size", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear",
    "rope.scaling.attn_factor",
})  # fmt: skip
_PLAIN: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
_ROPE_TYPES = ("none", "linear", "yarn")
# Meta's Llama 3.1 to 3.3 all use these two; factor and original context are searched.
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR = 1.0, 4.0
_ORIGINAL_CONTEXTS = tuple(2**power for power in range(7, 21))


@dataclass(frozen=True, slots=True)
class RopeFactors:
    """Divisors of the rotary frequencies that the file has as tensors, [head_dim / 2]."""

    llama3: NDArray[np.float32] | None = None
    short: NDArray[np.float32] | None = None  # longrope


def read_family(fields: FieldReader) -> Family:
    """Raises ModelFileError: an architecture that is not supported."""
    architecture = fields.text("general.architecture")
    family = BY_ARCHITECTURE.get(architecture)
    if family is None:
        known = ", ".join(sorted(BY_ARCHITECTURE))
        raise fields.error("general.architecture", f"{architecture!r}; {known} are supported")
    return family


def parse_gguf_config(
    fields: FieldReader,
    family: Family,
    *,
    vocab_size: int,
    tied: bool,
    factors: RopeFactors,
) -> ModelConfig:
    """``vocab_size``: rows of the embedding.

    Raises:
        ModelFileError: a key that is missing, of a wrong kind, or whose value is not supported.
    """
    arch = f"{family.architecture}."
    _check_keys(fields, arch)
    hidden_size = fields.positive_int(arch + "embedding_length")
    num_heads = fields.positive_int(arch + "attention.head_count")
    head_dim = _head_dim(fields, arch, hidden_size, num_heads)
    stated_positions = fields.positive_int(arch + "context_length")
    rope = _parse_rope(fields, arch, stated_positions, head_dim, factors)
    max_positions = rope.max_positions(stated_positions)
    window = fields.count(arch + "attention.sliding_window", None if family.is_fused else 0)
    epsilon = fields.positive_float(arch + "attention.layer_norm_rms_epsilon")
    config = ModelConfig(
        architecture=family.architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int(arch + "feed_forward_length"),
        num_layers=fields.positive_int(arch + "block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.positive_int(arch + "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=_shortest(epsilon),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        max_positions=min(max_positions, window or max_positions),
        tied_embeddings=tied,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window=window,
    )
    check_config(config, fields.where)
    return config


def _check_keys(fields: FieldReader, arch: str) -> None:
    plain = {arch + name: values for name, values in _PLAIN.items()}
    fields.refuse_unless(plain, "is not supported")
    for name in fields.values:
        if name.startswith(arch) and name not in plain and name[len(arch) :] not in _USED_KEYS:
            raise fields.error(name, "unknown; it may change what the model computes")


def _head_dim(fields: FieldReader, arch: str, hidden_size: int, num_heads: int) -> int:
    if not fields.has(arch + "attention.key_length") and hidden_size % num_heads:
        raise fields.error(
            arch + "embedding_length", f"{hidden_size} is not a multiple of {num_heads} heads"
        )
    head_dim = fields.positive_int(arch + "attention.key_length", hidden_size // num_heads)
    for name in (arch + "attention.value_length", arch + "rope.dimension_count"):
        if fields.positive_int(name, head_dim) != head_dim:
            raise fields.error(name, f"{fields.values[name]} differs from head_dim {head_dim}")
    return head_dim


def _parse_rope(
    fields: FieldReader,
    arch: str,
    stated_positions: int,
    head_dim: int,
    factors: RopeFactors,
) -> Rope:
    theta = fields.positive_float(arch + "rope.freq_base", 10000.0)
    if theta <= 1.0:
        raise fields.error(arch + "rope.freq_base", f"{theta} is not greater than 1")
    if factors.short is not None:
        scaling = _parse_longrope(fields, arch, stated_positions, head_dim, factors.short)
    else:
        fields.refuse_unless({arch + "rope.scaling.attn_factor": (1.0,)}, "is not supported")
        scaling = _parse_scaling(fields, arch, stated_positions)
    if factors.llama3 is None:
        return Rope(_shortest(theta), scaling)
    if scaling.kind != "none":
        raise fields.error(arch + "rope.scaling.factor", f"together with {ROPE_FACTORS_TENSOR}")
    scaling = find_llama3_scaling(fields.where, factors.llama3, theta, head_dim)
    return Rope(_shortest(theta), scaling)


def _parse_longrope(
    fields: FieldReader, arch: str, stated_positions: int, head_dim: int, short: NDArray[np.float32]
) -> RopeScaling:
    fields.refuse_unless({arch + "rope.scaling.type": ("longrope",)}, "has longrope's tensors")
    if short.shape != (head_dim // 2,) or not bool(((short > 0) & (short < np.inf)).all()):
        raise ModelFileError(
            f"{fields.where}: tensor {SHORT_FACTORS_TENSOR}: must be {head_dim // 2} positive "
            "numbers"
        )
    original = fields.positive_int(arch + "rope.scaling.original_context_length")
    factor = stated_positions / original
    usual = longrope_attention_factor(factor, original)
    stated = fields.positive_float(arch + "rope.scaling.attn_factor", usual)
    return RopeScaling(
        "longrope",
        factor,
        original_max_positions=original,
        # The file has it in float32: the same number as in the folder unless it is another.
        attention_factor=usual if math.isclose(stated, usual, rel_tol=1e-6) else stated,
        short_factors=tuple(_shortest(value) for value in short.tolist()),
    )


def _parse_scaling(fields: FieldReader, arch: str, stated_positions: int) -> RopeScaling:
    # Files older than the type key have the factor alone, and mean linear.
    kind = fields.text(arch + "rope.scaling.type", "linear")
    if kind not in _ROPE_TYPES:
        raise fields.error(arch + "rope.scaling.type", f"{kind!r}; of {_ROPE_TYPES} only")
    factor = _shortest(
        fields.positive_float(
            arch + "rope.scaling.factor", fields.positive_float(arch + "rope.scale_linear", 1.0)
        )
    )
    if kind == "yarn":
        return RopeScaling(
            "yarn",
            factor,
            original_max_positions=fields.positive_int(
                arch + "rope.scaling.original_context_length", stated_positions
            ),
            beta_fast=_shortest(fields.positive_float(arch + "rope.scaling.yarn_beta_fast", 32.0)),
            beta_slow=_shortest(fields.positive_float(arch + "rope.scaling.yarn_beta_slow", 1.0)),
            attention_factor=yarn_attention_factor(factor),
        )
    return RopeScaling("linear", factor) if kind == "linear" and factor != 1.0 else RopeScaling()


def find_llama3_scaling(
    where: str, factors: NDArray[np.float32], rope_theta: float, head_dim: int
) -> RopeScaling:
    """The Llama 3 scaling that gives these frequency divisors, one for each of head_dim / 2 pairs.

    Raises:
        ModelFileError: none does.
    """
    if factors.shape == (head_dim // 2,) and bool(((factors >= 1.0) & (factors < np.inf)).all()):
        if (factors == 1.0).all():
            return RopeScaling()
        factor = round(float(factors.max()), 4)
        for original in _ORIGINAL_CONTEXTS:
            scaling = RopeScaling("llama3", factor, _LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR, original)
            if np.allclose(factors, llama3_factors(scaling, rope_theta, head_dim), rtol=1e-4):
                return scaling
    raise ModelFileError(
        f"{where}: tensor {ROPE_FACTORS_TENSOR}: not the factors of a Llama 3 rotary scaling "
        f"(low_freq_factor {_LOW_FREQ_FACTOR}, high_freq_factor {_HIGH_FREQ_FACTOR})"
    )


def llama3_factors(scaling: RopeScaling, rope_theta: float, head_dim: int) -> NDArray[np.float64]:
    """What each rotary frequency is divided by (Meta's Llama 3.1 release)."""
    frequencies = rope_theta ** -(np.arange(0, head_dim, 2) / head_dim)
    rotations = scaling.original_max_positions * frequencies / (2 * math.pi)  # within the context
    smooth = (rotations - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blend = np.clip(smooth, 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / scaling.factor + blend)


def _shortest(value: float) -> float:
    """A float32 from the file as the decimal that was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
