"""How long KV of a prefill worker comes after its first token: learnt from what was seen lately.

    exposed seconds = fixed + per token x tokens of the last chunk

What is not hidden behind computing is mostly the same for any prompt (messages, the reader's turn),
so a time seen with a prompt of one token must not be taken for a rate: a prompt of 600 would then
seem to wait a second, and the worker would never be asked again to show otherwise. Both parts are
fitted to weighted sums of lately seen samples, drawn towards zero while there are few (ridge), and
neither is below zero. A worker from which no KV came for a while fades to zero and is tried again.
Pure: times are passed in. Not covered: readers of unlike speed.
"""

from __future__ import annotations

from typing import NamedTuple

KEPT = 0.8  # of a sample's weight at the next one: five count in the long run
RIDGE = 0.1  # in samples
HALF_LIFE_S = 10.0  # of what was seen, once nothing more is seen


class Exposed(NamedTuple):
    fixed_s: float = 0.0
    per_token_s: float = 0.0


class ExposedEstimate:
    """Of one prefill worker. ``chunk_tokens``: more tokens than that are never in the last piece;
    in this unit both parts are of one size, so that the fit has no favourite."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._weight = self._x = self._xx = self._y = self._xy = 0.0
        self._seen_s = 0.0  # the last sample
        self._fitted = Exposed()

    def observe(self, exposed_s: float, num_tokens: int, now_s: float) -> None:
        """KV of so many tokens was verified so long after the first token."""
        x = min(num_tokens, self._chunk_tokens) / self._chunk_tokens
        self._weight = KEPT * self._weight + 1.0
        self._x = KEPT * self._x + x
        self._xx = KEPT * self._xx + x * x
        self._y = KEPT * self._y + exposed_s
        self._xy = KEPT * self._xy + x * exposed_s
        self._seen_s = now_s
        self._fitted = self._fit()

    def at(self, now_s: float) -> Exposed:
        """As far as what was seen still counts."""
        fixed_s, per_token_s = self._fitted
        if not (fixed_s or per_token_s):
            return self._fitted
        left = 0.5 ** ((now_s - self._seen_s) / HALF_LIFE_S)
        return Exposed(fixed_s * left, per_token_s * left)

    def _fit(self) -> Exposed:
        """Least squares with a ridge, by Cramer's rule; a part below zero is left out."""
        a, c = self._weight + RIDGE, self._xx + RIDGE
        determinant = a * c - self._x * self._x
        fixed_s = (self._y * c - self._xy * self._x) / determinant
        per_chunk_s = (a * self._xy - self._x * self._y) / determinant
        if per_chunk_s < 0:
            fixed_s, per_chunk_s = self._y / a, 0.0
        elif fixed_s < 0:
            fixed_s, per_chunk_s = 0.0, self._xy / c
        return Exposed(fixed_s, per_chunk_s / self._chunk_tokens)
