"""What this engine's steps cost, followed from the steps it runs; reported to routers.

It begins from a guess of the proportions, in the size of the first step and held as firmly as one:
until prompts of several lengths have been seen, nearly all of a chunk's time counts as its tokens'
and not as fixed (or a cached prefix would be worth nothing). Of a kind of step that has not run yet
nothing is told. Knows no roles. Not covered: steps that mix prompts and decode rows.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.step import StepRow
from pdserve.step_cost import CostEstimator, DecodeCost, Features, PrefillCost, StepCost

# A guess of 0 is not held at all.
PROPORTIONS = StepCost(PrefillCost(1e-4, 1e-5, 0.0), DecodeCost(1e-3, 1e-4, 0.0))

# An observation takes some 35 us, beside decode steps of a few ms.
LEARN_FROM_ALL = 64  # decode steps
LEARN_EVERY = 8


class MeasuredCost:
    def __init__(self) -> None:
        self._prefill: CostEstimator | None = None
        self._decode: CostEstimator | None = None
        self._num_decode_steps = 0

    @property
    def cost(self) -> StepCost:
        """Zeros for a kind of step that has not run."""
        nothing, prefill, decode = StepCost(), self._prefill, self._decode
        return StepCost(
            nothing.prefill if prefill is None else PrefillCost(*prefill.coefficients),
            nothing.decode if decode is None else DecodeCost(*decode.coefficients),
        )

    def observe(self, rows: SequenceOf[StepRow], duration_s: float) -> None:
        """A step of these rows took so long. Decode steps: at first all, then some are learnt from.

        A prompt's last chunk of one token looks like a decode row; it costs as much.
        """
        if all(row.num_tokens == 1 for row in rows):
            self._num_decode_steps += 1
            if self._num_decode_steps <= LEARN_FROM_ALL or not self._num_decode_steps % LEARN_EVERY:
                kv_tokens = sum(row.end for row in rows)
                features = DecodeCost.features(len(rows), kv_tokens)
                guess = PROPORTIONS.decode.coefficients
                self._decode = _follow(self._decode, guess, features, duration_s)
        elif len(rows) == 1:  # what several prompts cost together says little of one
            features = PrefillCost.features(rows[0].start, rows[0].end)
            guess = PROPORTIONS.prefill.coefficients
            self._prefill = _follow(self._prefill, guess, features, duration_s)


def _follow(
    estimator: CostEstimator | None, guess: Features, features: Features, seconds: float
) -> CostEstimator | None:
    if seconds <= 0:
        return estimator
    if estimator is None:
        scale = seconds / sum(a * b for a, b in zip(guess, features, strict=True))
        estimator = CostEstimator((guess[0] * scale, guess[1] * scale, guess[2] * scale))
    estimator.observe(features, seconds)
    return estimator
