"""When a write of gRPC's has left, which is not when its await returns.

The message goes to the socket while the call is made; what the await waits for is the news of that,
which comes through a thread of gRPC's and a turn of the event loop, late if the loop is busy.
Not covered: a first message that flow control holds back (no window is that small).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Self


class FirstStep:
    """Awaits ``awaited``; calls ``then`` as soon as its first step has run without an error."""

    def __init__(self, awaited: Awaitable[None], then: Callable[[], None]) -> None:
        self._steps: Generator[Any, Any, None] = awaited.__await__()
        self._then: Callable[[], None] | None = then

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        try:
            waits_for = self._steps.send(value)
        except StopIteration:
            self._tell()
            raise
        self._tell()
        return waits_for

    def throw(
        self,
        kind: type[BaseException],
        error: BaseException | None = None,
        where: TracebackType | None = None,
    ) -> Any:
        return self._steps.throw(kind if error is None else error)

    def close(self) -> None:
        self._steps.close()

    def _tell(self) -> None:
        if self._then is not None:
            then, self._then = self._then, None
            then()
