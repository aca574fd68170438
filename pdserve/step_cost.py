"""What a step costs in seconds, as a few coefficients: fitted to samples at once, or online.

    prefill of tokens m .. n of a prompt     a + b (n - m) + c (n² - m²)      a: once for each chunk
    decode step                              a + b batch + c KV tokens read

The shapes are those of the arithmetic: products grow with tokens, attention with pairs of tokens
(prefill) or with the KV read (decode); c of a prefill counts half a pair each. Coefficients are
never negative. Plain numbers, no clock and no I/O: engines fit them from their steps, routers
predict with them. Not covered: steps that mix both kinds (a step of decode rows beside a chunk).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Features = tuple[float, float, float]
Sample = tuple[Features, float]  # what was in a step, and the seconds it took

_SINGULAR = 1e-12  # a pivot this small among columns scaled to length 1 carries no information
_ROUNDING = 1e-24  # squared, of a float's own error
_SURPRISE = 4.0  # a step is taken to be at most this many times slower or faster than predicted


@dataclass(frozen=True, slots=True)
class PrefillCost:
    fixed_s: float  # for each chunk
    per_token_s: float
    per_squared_token_s: float

    @staticmethod
    def features(start: int, end: int, num_chunks: int = 1) -> Features:
        """Of tokens ``start .. end`` of one prompt, computed in ``num_chunks`` steps."""
        return float(num_chunks), float(end - start), float(end) ** 2 - float(start) ** 2

    def seconds(self, start: int, end: int, num_chunks: int = 1) -> float:
        """To compute tokens ``start .. end`` of a prompt whose first ``start`` have their KV."""
        return _dot(self.coefficients, self.features(start, end, num_chunks))

    @property
    def coefficients(self) -> Features:
        return self.fixed_s, self.per_token_s, self.per_squared_token_s


@dataclass(frozen=True, slots=True)
class DecodeCost:
    fixed_s: float
    per_sequence_s: float
    per_kv_token_s: float

    @staticmethod
    def features(batch: int, kv_tokens: int) -> Features:
        return 1.0, float(batch), float(kv_tokens)

    def seconds(self, batch: int, kv_tokens: int) -> float:
        """One step of ``batch`` sequences whose contexts have ``kv_tokens`` tokens together."""
        return _dot(self.coefficients, self.features(batch, kv_tokens))

    @property
    def coefficients(self) -> Features:
        return self.fixed_s, self.per_sequence_s, self.per_kv_token_s


@dataclass(frozen=True, slots=True)
class StepCost:
    """One engine's two costs. All zero: nothing is known."""

    prefill: PrefillCost = PrefillCost(0.0, 0.0, 0.0)
    decode: DecodeCost = DecodeCost(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Fit:
    coefficients: Features
    r_squared: float  # 1 - squared residuals / squared distances from the mean
    residuals_s: tuple[float, ...]  # measured - predicted, sample by sample

    @property
    def rms_residual_s(self) -> float:
        return math.sqrt(sum(r * r for r in self.residuals_s) / len(self.residuals_s))


def fit(samples: Sequence[Sample], *, is_relative: bool = False) -> Fit:
    """Least squares with coefficients that are not negative.

    ``is_relative``: minimise errors as fractions of the measured seconds, so that short steps
    count as much as long ones. Residuals are in seconds either way.

    Raises:
        ValueError: no sample, or a time that is not positive and finite.
    """
    if not samples:
        raise ValueError("samples: none to fit")
    if not all(0 < seconds < math.inf for _, seconds in samples):
        raise ValueError("samples: seconds must be positive and finite")
    sums = NormalSums()
    for features, seconds in samples:
        sums.add(features, seconds, weight=1 / seconds**2 if is_relative else 1.0)
    found = sums.solve()
    residuals = tuple(seconds - _dot(found, features) for features, seconds in samples)
    mean = sum(seconds for _, seconds in samples) / len(samples)
    spread = sum((seconds - mean) ** 2 for _, seconds in samples)
    missed = sum(r * r for r in residuals)
    is_exact = missed <= _ROUNDING * sum(seconds**2 for _, seconds in samples)
    return Fit(found, 1.0 if is_exact else 1 - missed / spread if spread else 0.0, residuals)


class NormalSums:
    """Weighted sums of products of features and seconds: all that least squares needs."""

    def __init__(self) -> None:
        self.products = [[0.0] * 3 for _ in range(3)]
        self.targets = [0.0] * 3

    def add(self, features: Features, seconds: float, weight: float = 1.0) -> None:
        for i, feature in enumerate(features):
            self.targets[i] += weight * feature * seconds
            for j, other in enumerate(features):
                self.products[i][j] += weight * feature * other

    def solve(self) -> Features:
        """The coefficients of least squared error that are not negative.

        Of three unknowns every set that may be above zero is tried (the plain form of Lawson and
        Hanson's NNLS). A feature that never was above 0 gets 0.
        """
        scale = [math.sqrt(self.products[i][i]) for i in range(3)]
        used = [i for i in range(3) if scale[i] > 0]
        matrix = [[self.products[i][j] / (scale[i] * scale[j]) for j in used] for i in used]
        target = [self.targets[i] / scale[i] for i in used]
        found = [0.0] * 3
        for place, value in _solve_not_negative(matrix, target).items():
            found[used[place]] = value / scale[used[place]]
        return found[0], found[1], found[2]


class CostEstimator:
    """Three coefficients followed step by step: recursive least squares that forgets.

    A step makes older ones count less only as far as they said something about the same mix
    (directional forgetting: Cao and Schwartz, Automatica 36, 2000). So hours at one batch size do
    not wear away what was learnt about others. Errors count as fractions of the measured time. A
    step that took many times what was predicted (a paused process) moves the estimate little.

    ``forgetting``: what of the old remains after a step of the same mix; 0.99 follows a change
    within some hundred steps.
    """

    def __init__(self, start: Features = (0.0, 0.0, 0.0), *, forgetting: float = 0.99) -> None:
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting: {forgetting}, must be above 0 and at most 1")
        self._sums = NormalSums()
        for index, coefficient in enumerate(start):
            if coefficient > 0:  # held as firmly as one step that confirmed it
                features = [0.0] * 3
                features[index] = 1 / coefficient
                self._sums.add((features[0], features[1], features[2]), 1.0)
        self._forgetting = forgetting
        self._coefficients = start
        self.num_samples = 0

    @property
    def coefficients(self) -> Features:
        """All zero, unless told otherwise, before the first step."""
        return self._coefficients

    def observe(self, features: Features, seconds: float) -> None:
        """A step of these features took so long. One of 0 s or less says nothing."""
        predicted = _dot(self._coefficients, features)
        if seconds <= 0 or not any(features):
            return
        if predicted > 0:
            seconds = min(max(seconds, predicted / _SURPRISE), predicted * _SURPRISE)
        self._fade(features)
        self._sums.add(features, seconds, weight=1 / seconds**2)
        self._coefficients = self._sums.solve()
        self.num_samples += 1

    def _fade(self, features: Features) -> None:
        """Weaken what is known along ``features``, and restate the rest as known exactly."""
        products = self._sums.products
        along = [sum(line[j] * features[j] for j in range(3)) for line in products]
        strength = sum(a * feature for a, feature in zip(along, features, strict=True))
        if strength > 0:
            factor = (1 - self._forgetting) / strength
            for i in range(3):
                for j in range(3):
                    products[i][j] -= factor * along[i] * along[j]
        self._sums.targets = [_dot((p[0], p[1], p[2]), self._coefficients) for p in products]


class StepCostEstimator:
    """Follows an engine's ``StepCost`` from the steps it runs."""

    def __init__(self, start: StepCost | None = None) -> None:
        start = start or StepCost()
        self._prefill = CostEstimator(start.prefill.coefficients)
        self._decode = CostEstimator(start.decode.coefficients)

    @property
    def cost(self) -> StepCost:
        return StepCost(
            PrefillCost(*self._prefill.coefficients), DecodeCost(*self._decode.coefficients)
        )

    @property
    def num_prefill_samples(self) -> int:
        return self._prefill.num_samples

    @property
    def num_decode_samples(self) -> int:
        return self._decode.num_samples

    def observe_chunk(self, start: int, end: int, seconds: float) -> None:
        """A step that computed tokens ``start .. end`` of one prompt and nothing else."""
        self._prefill.observe(PrefillCost.features(start, end), seconds)

    def observe_decode(self, batch: int, kv_tokens: int, seconds: float) -> None:
        """A step of ``batch`` decode rows and nothing else; see ``DecodeCost.seconds``."""
        self._decode.observe(DecodeCost.features(batch, kv_tokens), seconds)


def _solve_not_negative(matrix: list[list[float]], target: list[float]) -> dict[int, float]:
    """Value by index of minimise x'Mx - 2x't over x >= 0; absent: 0. M has a unit diagonal."""
    everything = tuple(range(len(target)))
    best: dict[int, float] = {}
    best_gain = 0.0
    for size in range(len(target), 0, -1):
        for chosen in itertools.combinations(everything, size):
            solved = _solve(
                [[matrix[i][j] for j in chosen] for i in chosen], [target[i] for i in chosen]
            )
            if solved is None or min(solved) < 0:
                continue
            gain = sum(value * target[i] for i, value in zip(chosen, solved, strict=True))
            if gain > best_gain:
                best, best_gain = dict(zip(chosen, solved, strict=True)), gain
            if size == len(target):  # nothing held back: no smaller set does better
                return best
    return best


def _solve(matrix: list[list[float]], target: list[float]) -> list[float] | None:
    """Gauss with pivots; None if the equations do not determine all unknowns."""
    lines = [[*line, value] for line, value in zip(matrix, target, strict=True)]
    size = len(lines)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(lines[row][column]))
        if abs(lines[pivot][column]) < _SINGULAR:
            return None
        lines[column], lines[pivot] = lines[pivot], lines[column]
        for row in range(size):
            if row != column:
                factor = lines[row][column] / lines[column][column]
                lines[row] = [
                    own - factor * other
                    for own, other in zip(lines[row], lines[column], strict=True)
                ]
    return [lines[i][size] / lines[i][i] for i in range(size)]


def _dot(left: Features, right: Features) -> float:
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]
