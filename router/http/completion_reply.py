"""Choices of /v1/completions: in ``text_completion``, whole and as chunks."""

from __future__ import annotations

import msgspec

from router.http.replies import Piece, finite_logprob
from router.text_job import TextLogprobs


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
    """One answer to a plain prompt.

    ``echo`` is the prompt's text, which then stands before the answer's, in the same chunk as the
    first of it.
    """

    def __init__(self, index: int, *, num_logprobs: int | None, echo: str = "") -> None:
        self._index = index
        self._num_logprobs = num_logprobs
        self._echo = echo
        self._next_offset = 0

    def whole(self, piece: Piece) -> CompletionChoice:
        return self.chunk(piece)

    def chunk(self, piece: Piece) -> CompletionChoice:
        text, self._echo = self._echo + piece.text, ""
        return CompletionChoice(self._index, text, self._logprobs(piece), piece.finish_reason)

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
