"""The rotary settings of config.json: base, scaling, and how far they carry.

Both spellings are read: ``rope_theta`` + ``rope_scaling``, and the newer ``rope_parameters``. Which
numbers follow from them is transformers' rule (modeling_rope_utils). Not covered: partial rotation,
settings that differ from layer to layer; refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.modelfiles.families import Family
from engine.modelfiles.field_reader import FieldReader, shorten
from pdserve.prepared import RopeScaling

_COMMON_FIELDS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_FIELDS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "longrope": frozenset({
        "factor", "short_factor", "long_factor", "attention_factor",
        "original_max_position_embeddings",
    }),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset({
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    }),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rope:
    theta: float
    scaling: RopeScaling

    def max_positions(self, stated: int) -> int:
        """``stated``: max_position_embeddings, which yarn's settings leave as it was before.

        Past its original context longrope would change the KV of every token.
        """
        original = self.scaling.original_max_positions
        if self.scaling.kind == "yarn":
            return max(stated, int(self.scaling.factor * original))
        return min(stated, original) if self.scaling.kind == "longrope" else stated


@dataclass(frozen=True, slots=True)
class _Context:
    """Which settings of a config are in question, beside the rotary ones."""

    family: Family
    stated: int  # max_position_embeddings
    original: int  # what the model was first trained on, unless the rotary settings say
    num_pairs: int  # of rotated dimensions in a head


def parse_rope(fields: FieldReader, family: Family, stated_positions: int, head_dim: int) -> Rope:
    """From whichever spelling is there; both must agree if both are.

    Raises:
        ModelFileError: a kind that is not supported, a field that is unknown or of a wrong kind.
    """
    parameters = _rope_fields(fields, "rope_parameters")
    legacy = _rope_fields(fields, "rope_scaling")
    theta = fields.positive_float("rope_theta", 10000.0)
    original = fields.positive_int(
        "original_max_position_embeddings", family.original_positions or stated_positions
    )
    context = _Context(family, stated_positions, original, head_dim // 2)
    scaling = _parse_scaling(legacy, context)
    if parameters is not None:
        new_scaling = _parse_scaling(parameters, context)
        if legacy is not None and new_scaling != scaling:
            raise fields.error("rope_scaling", "contradicts rope_parameters")
        scaling = new_scaling
        new_theta = parameters.positive_float("rope_theta", theta)
        if fields.has("rope_theta") and theta != new_theta:
            raise fields.error("rope_theta", f"{theta} contradicts {new_theta} in rope_parameters")
        theta = new_theta
    if theta <= 1.0:
        raise fields.error("rope_theta", f"{theta} is not greater than 1")
    _check_original(fields, scaling)
    return Rope(theta, scaling)


def _rope_fields(fields: FieldReader, name: str) -> FieldReader | None:
    value = fields.values.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fields.error(name, f"{shorten(value)} is not an object")
    return FieldReader(f"{fields.where}: {name}", value)


def _parse_scaling(rope: FieldReader | None, context: _Context) -> RopeScaling:
    if rope is None:
        return RopeScaling()
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in context.family.rope_types:
        raise rope.error("rope_type", f"{kind!r}; of {sorted(context.family.rope_types)} only")
    kind = {"su": "longrope"}.get(kind, kind)  # its first name
    rope.refuse_unless({"partial_rotary_factor": (1.0,)}, "is not supported")
    for name in rope.values:
        if name not in _COMMON_FIELDS | _FIELDS[kind] and rope.has(name):
            raise rope.error(name, f"unknown for rope_type {kind!r}")
    if kind == "default":
        return RopeScaling()
    if kind == "longrope":
        return _longrope(rope, context)
    factor = rope.positive_float("factor")
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, factor)
    return _llama3(rope, factor) if kind == "llama3" else _yarn(rope, factor, context.original)


def _llama3(rope: FieldReader, factor: float) -> RopeScaling:
    scaling = RopeScaling(
        "llama3",
        factor,
        rope.positive_float("low_freq_factor"),
        rope.positive_float("high_freq_factor"),
        rope.positive_int("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise rope.error("high_freq_factor", "must be greater than low_freq_factor")
    return scaling


def _longrope(rope: FieldReader, context: _Context) -> RopeScaling:
    for name in ("short_factor", "long_factor"):  # the long ones are past the context served
        factors = rope.values.get(name)
        is_list = isinstance(factors, list) and len(factors) == context.num_pairs
        if not is_list or any(type(f) not in (int, float) or not f > 0 for f in factors or ()):
            raise rope.error(name, f"must be a list of {context.num_pairs} positive numbers")
    original = rope.positive_int("original_max_position_embeddings", context.original)
    factor = rope.positive_float("factor", context.stated / original)
    return RopeScaling(
        "longrope",
        factor,
        original_max_positions=original,
        attention_factor=rope.positive_float(
            "attention_factor", longrope_attention_factor(factor, original)
        ),
        short_factors=tuple(map(float, rope.values["short_factor"])),
    )


def longrope_attention_factor(factor: float, original: int) -> float:
    """What cosines and sines are multiplied by (arXiv 2402.13753)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0


def _yarn(rope: FieldReader, factor: float, original: int) -> RopeScaling:
    scaling = RopeScaling(
        "yarn",
        factor,
        original_max_positions=rope.positive_int("original_max_position_embeddings", original),
        beta_fast=rope.positive_float("beta_fast", 32.0),
        beta_slow=rope.positive_float("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=_yarn_attention_factor(rope, factor),
    )
    if scaling.beta_fast < scaling.beta_slow:
        raise rope.error("beta_fast", "must not be less than beta_slow")
    return scaling


def _yarn_attention_factor(rope: FieldReader, factor: float) -> float:
    """Stated, or as the paper suggests, or DeepSeek's ratio of two such."""
    mscales = [rope.positive_float(name, 1.0) for name in ("mscale", "mscale_all_dim")]
    if rope.has("attention_factor"):
        return rope.positive_float("attention_factor")
    if rope.has("mscale") and rope.has("mscale_all_dim"):
        return yarn_attention_factor(factor, mscales[0]) / yarn_attention_factor(factor, mscales[1])
    return yarn_attention_factor(factor)


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """What cosines and sines are multiplied by (arXiv 2309.00071, 3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _check_original(fields: FieldReader, scaling: RopeScaling) -> None:
    """A second ``original_max_position_embeddings``, beside the rotary settings, wins elsewhere."""
    stated = fields.positive_int("original_max_position_embeddings", scaling.original_max_positions)
    if scaling.kind in ("llama3", "yarn", "longrope") and stated != scaling.original_max_positions:
        raise fields.error(
            "original_max_position_embeddings",
            f"{stated} contradicts {scaling.original_max_positions} of the rotary settings",
        )
