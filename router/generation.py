"""What a face (HTTP, gRPC) holds of a running request: tokens as they come, and the ledger.

The faces know this module and text_generation.py, never workers or sessions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from pdserve.request_timing import RequestTiming
from pdserve.route_hints import RouteHints
from pdserve.types import ModelInfo, Request, RequestId, TokenEvent


class Generation(Protocol):
    """One request under way.

    Iterating yields every token once, in order of index; the last one carries a finish reason.
    A failure is raised from the iterator as one PdserveError. Exactly one of the two happens.
    """

    @property
    def request_id(self) -> RequestId: ...

    @property
    def timing(self) -> RequestTiming:
        """The ledger so far; complete once the iterator has ended."""

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt, not computed again; as in the ledger."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]: ...

    def ready(self) -> TokenEvent | None:
        """The next token if it is here already: what the iterator would yield without a wait."""

    def cancel(self, reason: str) -> None:
        """Stop it everywhere. The iterator then raises RequestCancelled; idempotent."""


class TokenService(Protocol):
    """The router as its faces see it: token ids in, token events out."""

    @property
    def model(self) -> ModelInfo: ...

    def start(
        self,
        request: Request,
        *,
        tokenize_s: float = 0.0,
        follows: RequestId | None = None,
        hints: RouteHints | None = None,
    ) -> Generation:
        """Queue a request.

        ``follows``: a request under way with the same prompt, which is computed and shipped for
        both; this one shares its KV.

        Raises:
            InvalidRequest: a token id or a length is out of the model's range.
            Overloaded: the queue is full or the deadline cannot be met.
            ShuttingDown: the router drains.
        """
