"""Metadata of a GGUF file to ``ModelConfig``, for ``general.architecture = llama``.

Every ``llama.*`` key is either used, known to be plain at its value, or refused by name. Llama 3's
rotary scaling comes as a tensor of frequency factors (``rope_freqs.weight``) without the numbers it
was computed from; they are found again, so that the engine computes the same angles as from the
original folder. Not covered: YaRN and other scalings, mixtures of experts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engine.modelfiles.checkpoint import check_config
from engine.modelfiles.field_reader import FieldReader
from pdserve.errors import ModelFileError
from pdserve.prepared import ModelConfig, RopeScaling

ROPE_FACTORS_TENSOR = "rope_freqs.weight"

_USED_KEYS = frozenset({
    "llama.block_count", "llama.context_length", "llama.embedding_length",
    "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv",
    "llama.attention.key_length", "llama.attention.value_length",
    "llama.attention.layer_norm_rms_epsilon", "llama.vocab_size", "llama.rope.freq_base",
    "llama.rope.dimension_count", "llama.rope.scaling.type", "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned",
    "llama.rope.scale_linear",
})  # fmt: skip
_PLAIN_LLAMA: dict[str, tuple[object, ...]] = {
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.attention.sliding_window": (0,),
    "llama.attention.causal": (True,),
    "llama.attention.scale": (0.0,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    "llama.use_parallel_residual": (False,),
    "llama.tensor_data_layout": ("Meta AI original pth",),
    "llama.logit_scale": (0.0, 1.0),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
}
# Meta's Llama 3.1 to 3.3 all use these two; factor and original context are searched.
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR = 1.0, 4.0
_ORIGINAL_CONTEXTS = tuple(2**power for power in range(7, 21))


def parse_gguf_config(
    fields: FieldReader,
    *,
    vocab_size: int,
    tied: bool,
    rope_factors: NDArray[np.float32] | None,
) -> ModelConfig:
    """``vocab_size``: rows of the embedding; ``rope_factors``: ``rope_freqs.weight`` if there.

    Raises:
        ModelFileError: another architecture, or a key that is missing, of a wrong kind, or whose
            value is not supported.
    """
    _check_keys(fields)
    hidden_size = fields.positive_int("llama.embedding_length")
    num_heads = fields.positive_int("llama.attention.head_count")
    head_dim = _head_dim(fields, hidden_size, num_heads)
    rope_theta = fields.positive_float("llama.rope.freq_base", 10000.0)
    config = ModelConfig(
        architecture="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("llama.feed_forward_length"),
        num_layers=fields.positive_int("llama.block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.positive_int("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=_shortest(fields.positive_float("llama.attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(rope_theta),
        rope_scaling=_parse_scaling(fields, rope_theta, head_dim, rope_factors),
        max_positions=fields.positive_int("llama.context_length"),
        tied_embeddings=tied,
    )
    check_config(config, fields.where)
    return config


def _check_keys(fields: FieldReader) -> None:
    architecture = fields.text("general.architecture")
    if architecture != "llama":
        raise fields.error("general.architecture", f"{architecture!r}; only 'llama' is supported")
    fields.refuse_unless(_PLAIN_LLAMA, "is not supported")
    for name in fields.values:
        if name.startswith("llama.") and name not in _USED_KEYS and name not in _PLAIN_LLAMA:
            raise fields.error(name, "unknown; it may change what the model computes")


def _head_dim(fields: FieldReader, hidden_size: int, num_heads: int) -> int:
    if not fields.has("llama.attention.key_length") and hidden_size % num_heads:
        raise fields.error(
            "llama.embedding_length", f"{hidden_size} is not a multiple of {num_heads} heads"
        )
    head_dim = fields.positive_int("llama.attention.key_length", hidden_size // num_heads)
    for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if fields.positive_int(name, head_dim) != head_dim:
            raise fields.error(name, f"{fields.values[name]} differs from head_dim {head_dim}")
    return head_dim


def _parse_scaling(
    fields: FieldReader, rope_theta: float, head_dim: int, factors: NDArray[np.float32] | None
) -> RopeScaling:
    kind = fields.text("llama.rope.scaling.type", "none")
    factor = fields.positive_float(
        "llama.rope.scaling.factor", fields.positive_float("llama.rope.scale_linear", 1.0)
    )
    if kind not in ("none", "linear"):
        raise fields.error("llama.rope.scaling.type", f"{kind!r}; only none and linear")
    # Files older than the type key have the factor alone, and mean linear.
    is_linear = factor != 1.0 and (kind == "linear" or not fields.has("llama.rope.scaling.type"))
    if factors is None:
        return RopeScaling("linear", _shortest(factor)) if is_linear else RopeScaling()
    if is_linear:
        raise fields.error("llama.rope.scaling.factor", f"together with {ROPE_FACTORS_TENSOR}")
    return find_llama3_scaling(fields.where, factors, rope_theta, head_dim)


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
