"""The next token of each row from its logits.

Order: repetition, presence and frequency penalty, logit bias, min_tokens mask; then greedy
(highest logit, lowest id among equals), or temperature, top-k, top-p, min-p and a draw.

A draw is one uniform number, a hash of (seed, choice, token index) made on the host (counter
based, as Salmon et al., SC 2011, argue), put through the inverse distribution function over the
kept tokens, best first, lower id first among equals. Nothing else in the batch takes part, so a
row can be repeated on any worker. Only as many tokens are ranked as the draw needs; ranking more
never changes the result.

Logprobs are those of the model: of the raw logits, before penalties, temperature and truncation.
Not covered: beam search, guided decoding, speculative drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from engine.logit_edits import LogitEdits, edit_logits
from engine.step import SampledToken
from pdserve.types import SamplingParams, TokenLogprobs

FIRST_RANKED = 256  # tokens ranked before it is known how many a draw needs
MAX_FIRST_RANKED = 1024  # beyond that a whole sort is as quick
MIN_TEMPERATURE = 1e-5  # below: greedy
SUM_TILE = 128

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class SamplingRow:
    """What sampling needs to know of one row. ``index``: of the token to be sampled."""

    sampling: SamplingParams
    index: int
    edits: LogitEdits | None


def sample(
    logits: torch.Tensor,
    rows: SequenceOf[SamplingRow],
    best_ids: NDArray[np.int32] | None = None,
) -> list[SampledToken]:
    """One token a row. logits: [rows, vocab] float32, edited in place. ``best_ids``: of each row as
    it comes in, the id of the highest logit and the lowest among equals; None: found here."""
    finders = _logprob_finders(logits, rows)
    edited = [index for index, row in enumerate(rows) if row.edits is not None]
    for index in edited:
        edits = rows[index].edits
        assert edits is not None
        edit_logits(logits[index], edits)
    if best_ids is None:
        token_ids = _best_ids(logits)
    else:
        token_ids = best_ids.tolist()
        for index in edited:
            token_ids[index] = _best_ids(logits[index : index + 1])[0]
    drawing = [i for i, row in enumerate(rows) if row.sampling.temperature >= MIN_TEMPERATURE]
    if drawing:
        for i, token_id in zip(drawing, _draw_rows(logits, rows, drawing), strict=True):
            token_ids[i] = token_id
    return [
        SampledToken(token_id, None if finder is None else finder.logprobs(token_id))
        for token_id, finder in zip(token_ids, finders, strict=True)
    ]


def _best_ids(logits: torch.Tensor) -> list[int]:
    """Of each row, the lowest among equals. numpy's search is several times torch's on one core."""
    found = logits.numpy().argmax(-1) if logits.device.type == "cpu" else logits.argmax(-1)
    return found.tolist()


def uniform(seed: int, choice: int, index: int) -> float:
    """A number in [0, 1) of 53 random bits: splitmix64's finaliser over seed, choice and index."""
    state = 0
    for word in (seed, choice, index):
        state = _mixed((state ^ word) + 0x9E3779B97F4A7C15 & _MASK)
    return float((state >> 11) * 2.0**-53)


def _mixed(value: int) -> int:
    """Finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class RankedRow:
    """Tokens of one row, best first and lower id first among equals; more are ranked on demand."""

    def __init__(self, line: torch.Tensor, values: NDArray[np.float32], ids: NDArray[np.int64]):
        """``line``: all logits. ``values`` and ``ids``: some of the best, any order of equals."""
        self._line = line
        order = np.lexsort((ids, -values))
        self.values, self.ids = values[order], ids[order]
        if len(ids) < line.shape[0]:
            # Equals of the last one may be missing, so those present cannot be put in order.
            certain = int(np.searchsorted(-self.values, -self.values[-1]))
            self.values, self.ids = self.values[:certain], self.ids[:certain]

    @property
    def vocab_size(self) -> int:
        return self._line.shape[0]

    @property
    def is_complete(self) -> bool:
        return len(self.ids) == self._line.shape[0]

    def rank(self, num_tokens: int) -> None:
        """Make sure of the first ``num_tokens``; ranks all if they are not there."""
        if len(self.ids) < min(num_tokens, self._line.shape[0]):
            self.values, indices = (
                part.cpu().numpy() for part in self._line.sort(descending=True, stable=True)
            )
            self.ids = indices


def ranked_rows(logits: torch.Tensor, num_tokens: int) -> list[RankedRow]:
    """The best ``num_tokens`` of each row (fewer where the last ones are equal)."""
    values, ids = logits.topk(min(num_tokens, logits.shape[1]), sorted=False)
    parts = zip(logits, values.cpu().numpy(), ids.cpu().numpy(), strict=True)
    return [RankedRow(line, row_values, row_ids) for line, row_values, row_ids in parts]


def draw(ranked: RankedRow, total: float, sampling: SamplingParams, number: float) -> int:
    """The token at ``number`` in [0, 1) of the kept part of the distribution.

    ``total``: sum of exp((logit - best) / temperature) over the whole row.
    """
    top_k = min(sampling.top_k, ranked.vocab_size)
    ranked.rank(top_k or FIRST_RANKED)
    token_id = _draw_from_ranked(ranked, top_k, total, sampling, number)
    if token_id is None:
        ranked.rank(ranked.vocab_size)
        token_id = _draw_from_ranked(ranked, top_k, total, sampling, number)
        assert token_id is not None, "a complete ranking decides"
    return token_id


def _draw_from_ranked(
    ranked: RankedRow, top_k: int, total: float, sampling: SamplingParams, number: float
) -> int | None:
    """None if the draw or a cut may lie beyond the tokens ranked so far."""
    values = ranked.values[:top_k] if top_k else ranked.values
    is_all = ranked.is_complete or top_k > 0
    weights = tempered(values, sampling.temperature)
    sums = np.cumsum(weights, dtype=np.float64)
    whole = float(sums[-1]) if top_k else total
    kept = _num_kept(weights, sums, whole, sampling)
    is_cut = sampling.top_p < 1.0 or sampling.min_p > 0.0
    if is_cut and kept == len(weights) and not is_all:
        return None
    kept_mass = float(sums[kept - 1]) if is_cut else whole
    found = int(np.searchsorted(sums[:kept], number * kept_mass, side="right"))
    if found == kept and not (is_all or is_cut):
        return None
    return int(ranked.ids[min(found, kept - 1)])


def tempered(values: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """exp((value - first) / temperature) in float32, for values in falling order."""
    weights: NDArray[np.float32] = np.exp((values - values[0]) / np.float32(temperature))
    return weights


def _num_kept(
    weights: NDArray[np.float32], sums: NDArray[np.float64], whole: float, sampling: SamplingParams
) -> int:
    """Tokens left by top-p (the fewest that reach it) and min-p; at least one."""
    kept = len(weights)
    if sampling.top_p < 1.0:
        kept = min(kept, int(np.searchsorted(sums, sampling.top_p * whole)) + 1)
    if sampling.min_p > 0.0:
        kept = min(kept, int(np.count_nonzero(weights >= np.float32(sampling.min_p))))
    return max(kept, 1)


def _draw_rows(
    logits: torch.Tensor, rows: SequenceOf[SamplingRow], drawing: SequenceOf[int]
) -> list[int]:
    lines = logits if len(drawing) == len(rows) else logits[drawing]
    samplings = [rows[i].sampling for i in drawing]
    widest = max(sampling.top_k or FIRST_RANKED for sampling in samplings)
    ranked = ranked_rows(lines, min(widest, MAX_FIRST_RANKED) + 1)
    temperatures = torch.tensor([s.temperature for s in samplings], device=lines.device)
    totals = _exp_sums(lines, temperatures).tolist()
    return [
        draw(row, total, rows[i].sampling, uniform(rows[i].sampling.seed, 0, rows[i].index))
        for row, total, i in zip(ranked, totals, drawing, strict=True)
    ]


def _exp_sums(logits: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """Sum of exp((logit - best) / temperature) of each row, added in one fixed order, [rows]."""
    best = logits.amax(-1, keepdim=True)
    weights = ((logits - best) / temperatures[:, None]).exp_()
    padded = F.pad(weights, (0, -weights.shape[1] % SUM_TILE))
    return padded.view(len(weights), -1, SUM_TILE).sum(-1).sum(-1)


class _LogprobFinder:
    """Log probabilities of one row, taken before its logits are edited."""

    def __init__(self, line: torch.Tensor, ranked: RankedRow, total: float, num_top: int) -> None:
        self._line = line.cpu().numpy()
        self._log_total = float(np.log(np.float32(total)))
        self._best = float(self._line.max())
        ranked.rank(num_top)
        self._top_ids = ranked.ids[:num_top].tolist()

    def logprobs(self, token_id: int) -> TokenLogprobs:
        top = tuple((other, self._logprob(other)) for other in self._top_ids)
        return TokenLogprobs(self._logprob(token_id), top)

    def _logprob(self, token_id: int) -> float:
        return float(self._line[token_id]) - self._best - self._log_total


def _logprob_finders(
    logits: torch.Tensor, rows: SequenceOf[SamplingRow]
) -> list[_LogprobFinder | None]:
    finders: list[_LogprobFinder | None] = [None] * len(rows)
    asked = [i for i, row in enumerate(rows) if row.sampling.num_logprobs is not None]
    if not asked:
        return finders
    lines = logits[asked]
    counts = [rows[i].sampling.num_logprobs or 0 for i in asked]
    totals = _exp_sums(lines, torch.ones(len(asked), device=lines.device)).tolist()
    ranked = ranked_rows(lines, max(counts) + 1)
    for i, line, row, total, count in zip(asked, lines, ranked, totals, counts, strict=True):
        finders[i] = _LogprobFinder(line, row, total, count)
    return finders
