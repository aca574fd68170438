"""Rotary position embedding (RoFormer, arXiv 2104.09864) as tables of cosines and sines.

Frequencies and angles are float32 as in transformers; powers and cosines are taken in float64 and
rounded, so that an entry never depends on how many positions a table holds or which vector
instructions a machine has: workers with different context lengths compute the same KV bits.

Scalings: none, linear (positions divided by a factor), llama3 (Llama 3.1's smooth change of the
low frequencies), yarn (arXiv 2309.00071), dynamic (NTK-aware: frequencies change with the length of
the sequence once it passes the context the model was made for; up to there, and no further is
served, they are the plain ones), longrope (arXiv 2402.13753: divisors found by search; likewise up
to the original context, with its short ones). Not covered: partial rotation; the reader of model
files refuses it by name.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from pdserve.prepared import ModelConfig, RopeScaling


class RopeTable:
    """``cos`` and ``signed_sin``, each [num_positions, head_dim] float32.

    ``signed_sin`` has the first half negated, so that with ``rolled`` = x rolled by half a head
    the rotation is ``x * cos + rolled * signed_sin``.
    """

    def __init__(self, config: ModelConfig, num_positions: int, device: torch.device) -> None:
        frequencies = rope_frequencies(config)
        positions = np.arange(num_positions, dtype=np.float32)
        angles = np.outer(positions, frequencies).astype(np.float64)
        scale = config.rope_scaling.attention_factor
        cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
        self.cos = torch.from_numpy(_both_halves(cos, cos)).to(device)
        self.signed_sin = torch.from_numpy(_both_halves(-sin, sin)).to(device)


def rope_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Radians a position for each pair of dimensions, [head_dim / 2] float32.

    Raises:
        ValueError: a scaling of unknown kind.
    """
    exponents = np.arange(0, config.head_dim, 2).astype(np.float32) / np.float32(config.head_dim)
    bases = np.power(config.rope_theta, exponents.astype(np.float64)).astype(np.float32)
    frequencies: NDArray[np.float32] = np.float32(1.0) / bases
    scaling = config.rope_scaling
    if scaling.kind in ("none", "dynamic"):
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    if scaling.kind == "longrope":
        divisors = np.array(scaling.short_factors, np.float32)
        divided: NDArray[np.float32] = np.float32(1.0) / (divisors * bases)
        return divided
    if scaling.kind == "yarn":
        return _yarn(frequencies, bases, scaling, config.rope_theta)
    raise ValueError(f"rope_scaling.kind: {scaling.kind!r} is not known")


def _llama3(frequencies: NDArray[np.float32], scaling: RopeScaling) -> NDArray[np.float32]:
    """Keep short wavelengths, divide long ones by the factor, blend between (Llama 3.1)."""
    wavelengths = np.float32(2 * math.pi) / frequencies
    low = np.float32(scaling.original_max_positions / scaling.low_freq_factor)
    high = np.float32(scaling.original_max_positions / scaling.high_freq_factor)
    divided = frequencies / np.float32(scaling.factor)
    span = np.float32(scaling.high_freq_factor - scaling.low_freq_factor)
    original = np.float32(scaling.original_max_positions)
    keep = (original / wavelengths - np.float32(scaling.low_freq_factor)) / span
    blended = (np.float32(1.0) - keep) * divided + keep * frequencies
    scaled = np.where(wavelengths > low, divided, frequencies)
    between = (wavelengths <= low) & (wavelengths >= high)
    return np.where(between, blended, scaled).astype(np.float32)


def _yarn(
    frequencies: NDArray[np.float32],
    bases: NDArray[np.float32],
    scaling: RopeScaling,
    rope_theta: float,
) -> NDArray[np.float32]:
    """Keep pairs that turn often within the original context, divide those that turn seldom."""
    head_dim = 2 * len(frequencies)

    def dimension(num_rotations: float) -> float:
        """The pair that turns so often within the original context, as a real number."""
        turns = scaling.original_max_positions / (num_rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low or 0.001
    pairs = np.arange(len(frequencies), dtype=np.float32)
    ramp = np.clip((pairs - np.float32(low)) / np.float32(span), 0, 1).astype(np.float32)
    kept = np.float32(1.0) - ramp
    divided = np.float32(1.0) / (np.float32(scaling.factor) * bases)
    blended: NDArray[np.float32] = divided * (np.float32(1.0) - kept) + frequencies * kept
    return blended


def _both_halves(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.concatenate([first, second], axis=1).astype(np.float32)
