"""Finding stop strings in text that comes in pieces.

One Knuth-Morris-Pratt automaton for each stop string, moved on by each character: the cost of a
character does not depend on the text before it, and the longest state of all automata is exactly
the text that must be held back, because it may become a match. The first match to be complete
wins, so the result does not depend on how the text was cut into pieces. This module does not know
tokens nor usage (text_generation.py counts them). Not covered: regular expressions.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.errors import InvalidRequest

MAX_STOP_STRINGS = 16  # OpenAI allows 4
MAX_STOP_STRING_CHARS = 256


@dataclass(frozen=True, slots=True)
class StopScan:
    """Text that is safe to give out, and the stop string that ended it (if one did)."""

    text: str
    matched: str | None = None


def check_stop_strings(stop_strings: tuple[str, ...]) -> None:
    """Raises InvalidRequest naming ``stop`` if there are too many or one is empty or too long."""
    if len(stop_strings) > MAX_STOP_STRINGS:
        raise InvalidRequest("stop", f"at most {MAX_STOP_STRINGS} strings, not {len(stop_strings)}")
    for index, stop in enumerate(stop_strings):
        if not 1 <= len(stop) <= MAX_STOP_STRING_CHARS:
            raise InvalidRequest(
                f"stop[{index}]",
                f"must have 1 to {MAX_STOP_STRING_CHARS} characters, not {len(stop)}",
            )


class StopScanner:
    """Scans one text. After a match nothing more may be pushed."""

    def __init__(self, stop_strings: tuple[str, ...]) -> None:
        """Raises InvalidRequest as ``check_stop_strings`` does."""
        check_stop_strings(stop_strings)
        self._automata = [_Automaton(stop) for stop in dict.fromkeys(stop_strings)]
        self._held = ""

    def push(self, text: str) -> StopScan:
        """Take more text; what may still become a match stays held back.

        A match drops the stop string and everything after it. Of several that are complete at the
        same character the longest counts.
        """
        if not self._automata:
            return StopScan(text)
        buffered = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            complete = [found for found in self._automata if found.step(char)]
            if complete:
                stop = max((automaton.stop for automaton in complete), key=len)
                self._held = ""
                return StopScan(buffered[: end - len(stop)], stop)
        safe_len = len(buffered) - max(automaton.state for automaton in self._automata)
        self._held = buffered[safe_len:]
        return StopScan(buffered[:safe_len])

    def finish(self) -> str:
        """The text ended without a match: what was held back is ordinary text."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """``state`` is the length of the longest prefix of ``stop`` that ends the text so far."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.state = 0
        self._fallback = [0] * len(stop)  # of each prefix, its longest border
        border = 0
        for index in range(1, len(stop)):
            while border and stop[index] != stop[border]:
                border = self._fallback[border - 1]
            border += stop[index] == stop[border]
            self._fallback[index] = border

    def step(self, char: str) -> bool:
        """Take one character; True if it completes the stop string."""
        while self.state and self.stop[self.state] != char:
            self.state = self._fallback[self.state - 1]
        self.state += self.stop[self.state] == char
        return self.state == len(self.stop)
