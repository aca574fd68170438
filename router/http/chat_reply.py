"""Choices of /v1/chat/completions: in ``chat.completion`` and ``chat.completion.chunk``.

The role comes in the first chunk with the first text, never alone: clients measure the time to the
first token at the first chunk that has choices.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from router.http.replies import Piece, finite_logprob
from router.text_job import TextLogprobs, TokenText


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChosenLogprob]
    refusal: None = None


class ChatDelta(msgspec.Struct, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class AnswerMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class WholeChoice(msgspec.Struct, frozen=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatReply:
    """One answer to a chat."""

    def __init__(self, index: int, *, with_logprobs: bool) -> None:
        self._index = index
        self._with_logprobs = with_logprobs
        self._role_said = False

    def whole(self, piece: Piece) -> WholeChoice:
        message = AnswerMessage(role="assistant", content=piece.text)
        return WholeChoice(self._index, message, self._logprobs(piece), piece.finish_reason)

    def chunk(self, piece: Piece) -> ChunkChoice:
        first = not self._role_said
        self._role_said = True
        delta = ChatDelta(
            role="assistant" if first else UNSET,
            content=piece.text if piece.text or first else UNSET,
        )
        return ChunkChoice(self._index, delta, self._logprobs(piece), piece.finish_reason)

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        return ChatLogprobs([_chosen(entry) for entry in piece.logprobs])


def _chosen(entry: TextLogprobs) -> ChosenLogprob:
    chosen = entry.chosen
    return ChosenLogprob(
        token=chosen.text,
        logprob=finite_logprob(chosen),
        bytes=list(chosen.token_bytes),
        top_logprobs=[_top(token) for token in entry.top],
    )


def _top(token: TokenText) -> TopLogprob:
    return TopLogprob(token.text, finite_logprob(token), list(token.token_bytes))
