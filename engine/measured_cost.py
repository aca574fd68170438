"""What this engine's steps cost, followed from the steps it runs; reported to routers.

It begins from a guess of the proportions, in the size of the first step and held as firmly as one:
until prompts of several lengths have been seen, nearly all of a chunk's time counts as its tokens'
and not as fixed (or a cached prefix would be worth nothing), and what grows with the context is
held small (or the noise of a few short prompts would set it, and a long one would seem to take
minutes). Of a kind of step that has not run yet nothing is told. Knows no roles. Not covered: steps
that mix prompts and decode rows.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.step import StepRow
from pdserve.step_cost import CostEstimator, DecodeCost, Features, PrefillCost, StepCost

# Small is firm: the last of each is as much as lets a thousand tokens of context double the rest.
PROPORTIONS = StepCost(PrefillCost(1e-4, 1e-5, 1e-8), DecodeCost(1e-3, 1e-4, 1e-6))

# An observation takes some 35 us: 1 % of the steps' time.
LEARN_FROM_ALL = 64  # steps of a kind; after these one is learnt from
LEARN_AFTER_S = 0.0035  # when steps of its kind took so long since the last,
LEARN_EVERY = 8  # and of decode steps each eighth


class MeasuredCost:
    def __init__(self) -> None:
        self._prefill = _Followed(PROPORTIONS.prefill.coefficients, learn_every=1)
        self._decode = _Followed(PROPORTIONS.decode.coefficients, learn_every=LEARN_EVERY)

    @property
    def cost(self) -> StepCost:
        """Zeros for a kind of step that has not run."""
        return StepCost(
            PrefillCost(*self._prefill.coefficients), DecodeCost(*self._decode.coefficients)
        )

    def observe(self, rows: SequenceOf[StepRow], duration_s: float) -> None:
        """A step of these rows took so long. At first all, then some are learnt from.

        A prompt's last chunk of one token looks like a decode row; it costs as much.
        """
        if all(row.num_tokens == 1 for row in rows):
            if self._decode.is_due(duration_s):
                kv_tokens = sum(row.end for row in rows)
                self._decode.learn(DecodeCost.features(len(rows), kv_tokens), duration_s)
        elif len(rows) == 1 and self._prefill.is_due(duration_s):
            # What several prompts cost together says little of one.
            self._prefill.learn(PrefillCost.features(rows[0].start, rows[0].end), duration_s)


class _Followed:
    """One kind of step. ``guess``: its proportions; ``learn_every``: so many steps, not more."""

    def __init__(self, guess: Features, learn_every: int) -> None:
        self._guess = guess
        self._learn_every = learn_every
        self._estimator: CostEstimator | None = None
        self._num_steps = 0
        self._unlearnt_s = 0.0  # steps since the last that was learnt from

    @property
    def coefficients(self) -> Features:
        return (0.0, 0.0, 0.0) if self._estimator is None else self._estimator.coefficients

    def is_due(self, seconds: float) -> bool:
        """Whether a step that took so long is to be learnt from."""
        self._num_steps += 1
        self._unlearnt_s += seconds
        if self._num_steps <= LEARN_FROM_ALL:
            return seconds > 0
        return (
            self._unlearnt_s >= LEARN_AFTER_S
            and not self._num_steps % self._learn_every
            and seconds > 0
        )

    def learn(self, features: Features, seconds: float) -> None:
        if self._estimator is None:
            guess = self._guess
            scale = seconds / sum(a * b for a, b in zip(guess, features, strict=True))
            self._estimator = CostEstimator((guess[0] * scale, guess[1] * scale, guess[2] * scale))
        self._estimator.observe(features, seconds)
        self._unlearnt_s = 0.0
