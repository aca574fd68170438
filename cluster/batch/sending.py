"""Every line of a batch through the service: so many at once, failures of the service tried again.

    lines -> [sender, sender, ...] -> results, in the order in which they are finished

Only what another try may mend is tried again, after a pause that doubles or that the service asked
for. Knows neither files nor what the service is. Generations are not cut by a stop: whoever cancels
``run`` decides that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.batch.http_client import HttpConnection, HttpReply, ServiceUrl
from cluster.batch.lines import BatchLine, LineResult, RefusedLine
from pdserve.app import unless
from pdserve.clock import Clock
from pdserve.errors import PeerSilent, PeerUnreachable, ServiceError

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What the service told about one answer. ``ledger``: empty if it tells none."""

    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    ledger: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LineEnd:
    """A line that needs no more work."""

    result: LineResult
    measured: Measured
    num_tries: int


class Senders:
    """``run`` once; ``take_no_more`` lets what is under way come to its end."""

    def __init__(
        self,
        url: ServiceUrl,
        clock: Clock,
        *,
        concurrency: int,
        max_tries: int,
        timeout_s: float,
    ) -> None:
        self._url = url
        self._clock = clock
        self._concurrency = concurrency
        self._max_tries = max_tries
        self._timeout_s = timeout_s
        self._stop = asyncio.Event()

    def take_no_more(self) -> None:
        """Also: try nothing again. A line whose last try failed then has no result."""
        self._stop.set()

    async def run(
        self, lines: Iterator[BatchLine | RefusedLine], ended: Callable[[LineEnd], None]
    ) -> None:
        """Returns when every line taken has ended; what ``ended`` raises ends all."""
        try:
            async with asyncio.TaskGroup() as senders:
                for _ in range(self._concurrency):
                    senders.create_task(self._send_lines(lines, ended))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _send_lines(
        self, lines: Iterator[BatchLine | RefusedLine], ended: Callable[[LineEnd], None]
    ) -> None:
        connection = HttpConnection(self._url)
        try:
            while not self._stop.is_set() and (line := next(lines, None)) is not None:
                if isinstance(line, RefusedLine):
                    result = LineResult.of_error(line.number, line.custom_id, line.error)
                    ended(LineEnd(result, Measured(), 0))
                    await asyncio.sleep(0)  # a file of such lines must not keep the loop
                elif (end := await self._send(connection, line)) is not None:
                    ended(end)
        finally:
            connection.close()

    async def _send(self, connection: HttpConnection, line: BatchLine) -> LineEnd | None:
        """None: it failed through the service, and a stop came before it was tried again."""
        num_tries = 1
        while True:
            result, measured, pause_s = await self._try(connection, line)
            if not result.may_pass or num_tries == self._max_tries:
                return LineEnd(result, measured, num_tries)
            backoff_s = min(_FIRST_PAUSE_S * 2 ** (num_tries - 1), _LONGEST_PAUSE_S)
            await unless(self._stop, self._clock.sleep(max(pause_s, backoff_s)))
            if self._stop.is_set():
                return None
            num_tries += 1

    async def _try(
        self, connection: HttpConnection, line: BatchLine
    ) -> tuple[LineResult, Measured, float]:
        """The result of one try, what it measured, and the pause (s) the service asks for."""
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await connection.post(line.url, line.body, {"X-Pdserve-Timing": "1"})
            return _read_reply(line, reply)
        except TimeoutError:
            error: ServiceError | PeerUnreachable | PeerSilent
            error = PeerSilent(f"no answer within {self._timeout_s:g} s")
        except (PeerUnreachable, ServiceError) as failure:
            error = failure
        return LineResult.of_error(line.number, line.custom_id, error), Measured(), 0.0


def _read_reply(line: BatchLine, reply: HttpReply) -> tuple[LineResult, Measured, float]:
    """Raises ServiceError if it is no JSON (a proxy's page, say)."""
    try:
        body = json.loads(reply.body)
    except ValueError as error:
        text = reply.body[:200].decode("utf-8", errors="replace")
        raise ServiceError(f"status {reply.status} and no JSON: {text!r}") from error
    measured = _measured(body) if reply.status == 200 and isinstance(body, dict) else Measured()
    if measured.ledger is not None and not line.wants_timing:
        del body["pdserve"]
    request_id = reply.headers.get("x-request-id", "")
    result = LineResult(line.number, line.custom_id, reply.status, request_id, body)
    return result, measured, _retry_after_s(reply)


def _measured(body: dict[str, Any]) -> Measured:
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    ledger = body.get("pdserve")
    return Measured(
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        ledger if isinstance(ledger, dict) else None,
    )


def _retry_after_s(reply: HttpReply) -> float:
    """0 where nothing is asked, or a date is (which nobody here sends)."""
    text = reply.headers.get("retry-after", "")
    return min(float(text), _LONGEST_PAUSE_S) if text.isdecimal() else 0.0
