"""The JSON around answers, the same for both endpoints: envelope, usage, ledger.

A ``Reply`` (chat_reply.py, completion_reply.py) tells one choice of an answer, whole or in chunks,
and holds what is carried from chunk to chunk. This module does not know when a chunk is sent
(streaming.py). The ledger goes into a ``pdserve`` object where the client asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from pdserve.request_timing import RequestTiming
from pdserve.types import FinishReason
from router.text_job import TextLogprobs, TokenText

_LEDGER_FIELDS = tuple(field.name for field in fields(RequestTiming))
LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON does not have


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()


def usage_of(num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int) -> Usage:
    total = num_prompt_tokens + num_completion_tokens
    details = PromptTokensDetails(num_cached_tokens)
    return Usage(num_prompt_tokens, num_completion_tokens, total, details)


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The object around every answer and every chunk."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: Usage | UnsetType = UNSET
    pdserve: dict[str, Any] | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a choice (or all of it): some text, the tokens' logprobs, the end or not."""

    text: str
    logprobs: tuple[TextLogprobs, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Extras:
    """What goes beside the choices, if anything."""

    usage: Usage | None = None
    timings: tuple[RequestTiming, ...] = ()  # of one answer or of all, in their order
    several: str = "prompts"  # what several timings are of


NOTHING = Extras()


class Reply(Protocol):
    """How one endpoint tells one choice: as the value that stands in ``choices``."""

    def whole(self, piece: Piece) -> msgspec.Struct: ...

    def chunk(self, piece: Piece) -> msgspec.Struct: ...


@dataclass(frozen=True, slots=True)
class Frame:
    """What every object of one answer repeats.

    ``whole_kind`` and ``chunk_kind`` are OpenAI's names of the objects.
    """

    id: str
    created: int
    model: str
    whole_kind: str
    chunk_kind: str

    def whole(self, choices: list[msgspec.Struct], extras: Extras) -> bytes:
        return self._encode(self.whole_kind, choices, extras)

    def chunk(self, choices: list[msgspec.Struct], extras: Extras) -> bytes:
        """``choices`` is empty in what comes after the text."""
        return self._encode(self.chunk_kind, choices, extras)

    def _encode(self, kind: str, choices: list[msgspec.Struct], extras: Extras) -> bytes:
        envelope = Envelope(
            id=self.id,
            object=kind,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=UNSET if extras.usage is None else extras.usage,
            pdserve=ledgers(extras) if extras.timings else UNSET,
        )
        return msgspec.json.encode(envelope)


def ledgers(extras: Extras) -> dict[str, Any]:
    """The ledger of the only answer, or under ``prompts`` or ``answers`` those of several."""
    if len(extras.timings) == 1:
        return ledger(extras.timings[0])
    return {extras.several: [ledger(timing) for timing in extras.timings]}


def ledger(timing: RequestTiming) -> dict[str, Any]:
    """All fields of the ledger and the TTFT they add up to."""
    told = {name: getattr(timing, name) for name in _LEDGER_FIELDS}  # asdict copies as it goes
    told["ttft_s"] = timing.ttft_s
    return told


def finite_logprob(token: TokenText) -> float:
    return max(token.logprob, LOWEST_LOGPROB)
