"""What the router hands to a face for one request: a buffer between workers and a client.

It satisfies router/generation.py's Generation. The buffer holds each token once, so max_tokens
bounds it; putting never waits, so a client that does not read stalls nobody. It does not know how
the request is served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from pdserve.errors import PdserveError
from pdserve.request_timing import RequestTiming
from pdserve.types import RequestId, TokenEvent


class TokenStream:
    """One reader at a time. After the last token or the error, iteration ends."""

    def __init__(
        self,
        request_id: RequestId,
        timing: Callable[[], RequestTiming],
        cancel: Callable[[str], None],
        num_cached_tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        self._request_id = request_id
        self._timing = timing
        self._cancel = cancel
        self._num_cached_tokens = num_cached_tokens
        self._tokens: deque[TokenEvent] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._error: PdserveError | None = None

    @property
    def request_id(self) -> RequestId:
        return self._request_id

    @property
    def timing(self) -> RequestTiming:
        return self._timing()

    @property
    def num_cached_tokens(self) -> int:
        return self._num_cached_tokens()

    @property
    def num_buffered(self) -> int:
        return len(self._tokens)

    def cancel(self, reason: str) -> None:
        if not self._ended:
            self._cancel(reason)

    def put(self, *tokens: TokenEvent) -> None:
        self._tokens.extend(tokens)
        self._changed.set()

    def end(self, error: PdserveError | None, *, drop_buffered: bool = False) -> None:
        """Nothing more comes. ``drop_buffered``: the reader wants none of what is left."""
        self._ended = True
        self._error = error
        if drop_buffered:
            self._tokens.clear()
        self._changed.set()

    def ready(self) -> TokenEvent | None:
        return self._tokens.popleft() if self._tokens else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        while not self._tokens:
            if self._ended:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._tokens.popleft()
