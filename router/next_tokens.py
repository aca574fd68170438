"""Which of a worker's tokens the client's stream gets next. Pure.

Two workers' reports can overtake each other and a token can come twice: those that were delivered
are dropped, a gap is a fault of whoever sent it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pdserve.types import FinishReason, TokenEvent


class NextTokens(NamedTuple):
    """``gap``: what is wrong after them; "": nothing."""

    tokens: tuple[TokenEvent, ...]
    gap: str = ""

    @property
    def end_it(self) -> bool:
        return bool(self.tokens) and self.tokens[-1].finish_reason is not None


def next_tokens(tokens: Sequence[TokenEvent], due: int, max_tokens: int) -> NextTokens:
    """``due``: the index that comes next. The last of ``max_tokens`` is terminal, said or not."""
    passed: list[TokenEvent] = []
    for token in tokens:
        index = due + len(passed)
        if token.index < index:
            continue
        if token.index > index:
            return NextTokens(tuple(passed), f"token {token.index} came where {index} was due")
        if index + 1 == max_tokens and token.finish_reason is None:
            token = token._replace(finish_reason=FinishReason.LENGTH)
        passed.append(token)
        if token.finish_reason is not None:
            break
    return NextTokens(tuple(passed))
