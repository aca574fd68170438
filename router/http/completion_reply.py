"""Answers of /v1/completions: ``text_completion``, whole and as chunks."""

from __future__ import annotations

import msgspec

from router.http.replies import Extras, Frame, Piece, finite_logprob
from router.text_job import TextLogprobs

_KIND = "text_completion"


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """``text_offset``: characters of the answer's tokens before each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class CompletionReply:
    """One answer to a plain prompt."""

    def __init__(self, frame: Frame, *, num_logprobs: int | None) -> None:
        self._frame = frame
        self._num_logprobs = num_logprobs
        self._next_offset = 0

    def whole(self, piece: Piece, extras: Extras) -> bytes:
        return self.chunk(piece, extras)

    def chunk(self, piece: Piece, extras: Extras) -> bytes:
        choice = CompletionChoice(0, piece.text, self._logprobs(piece), piece.finish_reason)
        return self._frame.encode(_KIND, [choice], extras)

    def end_chunk(self, extras: Extras) -> bytes:
        return self._frame.encode(_KIND, [], extras)

    def _logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        if self._num_logprobs is None:
            return None
        offsets = []
        for entry in piece.logprobs:
            offsets.append(self._next_offset)
            self._next_offset += len(entry.chosen.text)
        return CompletionLogprobs(
            tokens=[entry.chosen.text for entry in piece.logprobs],
            token_logprobs=[finite_logprob(entry.chosen) for entry in piece.logprobs],
            top_logprobs=[_top(entry) for entry in piece.logprobs] if self._num_logprobs else None,
            text_offset=offsets,
        )


def _top(entry: TextLogprobs) -> dict[str, float]:
    """The best tokens by text, and the chosen one if it is not among them.

    Two tokens with one text (parts of characters) leave the better one.
    """
    best = {token.text: finite_logprob(token) for token in reversed(entry.top)}
    best.setdefault(entry.chosen.text, finite_logprob(entry.chosen))
    return best
