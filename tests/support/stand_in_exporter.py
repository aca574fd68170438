"""An exporter without a road: the test plays the reader by calling methods of the exports.

Satisfies what prefill_worker uses of kvtransfer/exporter.py, nothing more.
"""

from __future__ import annotations

import asyncio

from kvtransfer.exporter import ExportOutcome
from kvtransfer.messages import FirstTokenInfo
from kvtransfer.store import Lease
from pdserve.types import TicketId, TransferTicket


class StandInExport:
    """What the worker did to it lies in ``advanced``, ``committed``, ``closed``, ..."""

    def __init__(self, ticket: TransferTicket, lease: Lease, num_tokens: int) -> None:
        self.ticket = ticket
        self.lease = lease
        self.num_tokens = num_tokens
        self.advanced: list[int] = []
        self.committed: FirstTokenInfo | None = None
        self.finished_early = False
        self.closed: tuple[str, str] | None = None
        self._opened = asyncio.Event()
        self._outcome: asyncio.Future[ExportOutcome] = asyncio.get_running_loop().create_future()

    # --- what the worker calls ----------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        return self._outcome.done()

    async def wait_opened(self) -> None:
        """As the real one: also once the export has ended."""
        await self._opened.wait()

    async def outcome(self) -> ExportOutcome:
        return await asyncio.shield(self._outcome)

    def advance(self, num_computed_tokens: int) -> None:
        self.advanced.append(num_computed_tokens)

    def commit(self, first_token: FirstTokenInfo) -> None:
        assert self.committed is None
        self.committed = first_token

    def finish_early(self) -> None:
        self.finished_early = True

    def rearm(self, ticket: TransferTicket) -> bool:
        if self._outcome.done() or ticket.epoch <= self.ticket.epoch:
            return False
        self.ticket = ticket
        self._opened = asyncio.Event()
        return True

    def close(self, code: str, detail: str) -> None:
        if not self._outcome.done():
            self.closed = (code, detail)
            self._end(ExportOutcome.CLOSED)

    # --- what the test plays ------------------------------------------------------------------

    def open(self) -> None:
        self._opened.set()

    def ack(self) -> None:
        self._end(ExportOutcome.ACKED)

    def expire(self) -> None:
        self._end(ExportOutcome.EXPIRED)

    def _end(self, outcome: ExportOutcome) -> None:
        self._outcome.set_result(outcome)
        self._opened.set()


class StandInExporter:
    """``exports`` by ticket id; the latest offer counts."""

    def __init__(self) -> None:
        self.exports: dict[TicketId, StandInExport] = {}

    def offer(self, ticket: TransferTicket, lease: Lease, num_tokens: int) -> StandInExport:
        export = StandInExport(ticket, lease, num_tokens)
        self.exports[ticket.ticket_id] = export
        return export
