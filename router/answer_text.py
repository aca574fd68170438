"""The text of one answer as its tokens come: characters completed, stop strings found.

Tokens that come together are turned into text at once where no stop string is looked for, one by
one where one is: it may end the answer between two of them. This module does not know where tokens
come from nor what is done with the text (text_generation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pdserve.types import FinishReason, TokenEvent
from router.detokenizer import Detokenizer
from router.stop_strings import StopScan, StopScanner


class Taken(NamedTuple):
    """``num_tokens``: how many count, up to the one that ended the text if it has ended."""

    text: str
    num_tokens: int
    reason: FinishReason | None = None


class AnswerText:
    def __init__(
        self, detokenizer: Detokenizer, stop_strings: tuple[str, ...], min_tokens: int
    ) -> None:
        """``min_tokens``: of the answer, before which no stop string counts."""
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stop_strings) if stop_strings else None
        self._min_tokens = min_tokens
        self._num_tokens = 0

    def take(self, events: Sequence[TokenEvent]) -> Taken:
        """The text that the next tokens, at least one, add. Not after the end."""
        if self._scanner is None:
            return self._all(events)
        texts: list[str] = []
        for position, event in enumerate(events, 1):
            self._num_tokens += 1
            text, reason = self._scanned(event, self._scanner)
            texts.append(text)
            if reason is not None:
                return Taken("".join(texts), position, reason)
        return Taken("".join(texts), len(events))

    def _all(self, events: Sequence[TokenEvent]) -> Taken:
        reason = events[-1].finish_reason
        # The token that ended it (end of sequence, stop id) is no part of the text.
        spoken = events[:-1] if reason is FinishReason.STOP else events
        text = self._detokenizer.push(*[event.token_id for event in spoken])
        if reason is not None:
            text += self._detokenizer.finish()
        return Taken(text, len(events), reason)

    def _scanned(self, event: TokenEvent, scanner: StopScanner) -> tuple[str, FinishReason | None]:
        """The text this token adds, and how the answer ends with it (if it does)."""
        text, _, reason = self._all((event,))
        may_stop = self._num_tokens >= self._min_tokens
        scan = scanner.push(text) if may_stop else StopScan(text)
        if scan.matched is not None:
            return scan.text, FinishReason.STOP
        if reason is not None:
            return scan.text + scanner.finish(), reason
        return scan.text, None
