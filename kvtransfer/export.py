"""The KV of one ticket as its holder sees it: how far it is computed, who reads it, how it ended.

    offered --Open--> open --Ack--> ended (ACKED)
       ^                | Nack, broken connection
       +--rearm-------- held          any --expiry--> ended (EXPIRED), --close--> ended (CLOSED)

Changed by the prefill worker (``advance`` ... ``close``) and by the session of the reader
(``attach`` ... ``acknowledge``). Owns no blocks: whoever leased them releases them after the end.
Its time runs while nobody reads it, and once all is computed; whatever moves it on begins it anew
(``touch``). While a reader waits for what is still to be computed it stands still.
Knows neither bytes nor connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from kvtransfer.messages import Finished, FirstTokenInfo, Refused
from kvtransfer.store import Lease
from pdserve.clock import Clock
from pdserve.errors import PdserveError, StaleEpoch, TicketExpired
from pdserve.types import TransferTicket

LEAST_PAUSE_S = 0.01  # between two looks at the time: a ticket that has none must not spin


class ExportOutcome(StrEnum):
    ACKED = "acked"  # a reader has verified all of it
    EXPIRED = "expired"
    CLOSED = "closed"  # by the worker: cancelled, or the first token was the last


class Reader(Protocol):
    """The session that serves the reader now."""

    def wake(self) -> None:
        """Something to send may have come."""

    def cut(self, farewell: Refused | Finished) -> None:
        """Send this and end."""


class Export:
    """Made by ``Exporter.offer``."""

    def __init__(
        self,
        ticket: TransferTicket,
        lease: Lease,
        num_tokens: int,
        clock: Clock,
        on_change: Callable[[Export], None],
    ) -> None:
        self.ticket = ticket
        self.lease = lease
        self.num_tokens = num_tokens
        self.num_computed = 0
        self.first_token: FirstTokenInfo | None = None
        self.bytes_sent = 0  # payload, over all readers
        self.num_reads = 0  # readers that opened
        self.last_failure: PdserveError | None = None  # why the last reader did not finish
        self.farewell: Refused | Finished | None = None  # for readers that come after the end
        self._clock = clock
        self._on_change = on_change
        self._reader: Reader | None = None
        self._opened = asyncio.Event()
        self._ended = asyncio.Event()
        self._outcome: ExportOutcome | None = None
        self._moved_s = clock.now()
        self._expiry = self._start_expiry()

    # --- for the worker -----------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """A reader is there."""
        return self._reader is not None

    @property
    def is_held(self) -> bool:
        """A reader of this epoch was there and failed; waiting for ``rearm`` or expiry."""
        return self._outcome is None and self._reader is None and self.last_failure is not None

    @property
    def has_ended(self) -> bool:
        return self._outcome is not None

    async def wait_opened(self) -> bool:
        """Wait for a reader of the current epoch. False: the export ended first."""
        await self._opened.wait()
        return self._outcome is None or self.num_reads > 0

    async def outcome(self) -> ExportOutcome:
        await self._ended.wait()
        assert self._outcome is not None
        return self._outcome

    def advance(self, num_computed_tokens: int) -> None:
        """KV of so many tokens is in the blocks, from the start."""
        assert self.num_computed <= num_computed_tokens <= self.num_tokens, "advance out of range"
        self.num_computed = num_computed_tokens
        self.touch()
        self._wake_reader()

    def commit(self, first_token: FirstTokenInfo) -> None:
        """All is computed and the first token is known (and is not the last)."""
        assert self.num_computed == self.num_tokens, "commit before everything is computed"
        self.first_token = first_token
        self.touch()
        self._wake_reader()

    def finish_early(self) -> None:
        """The first token ended the request: readers get Finished."""
        self._end(ExportOutcome.CLOSED, Finished())

    def close(self, code: str, detail: str) -> None:
        """Readers, now and later, get ``Refused(code, detail)``. After the end: nothing."""
        self._end(ExportOutcome.CLOSED, Refused(code, detail))

    def rearm(self, ticket: TransferTicket) -> bool:
        """Offer the same KV to the reader of a later epoch, fencing the reader of this one.

        False and no change: the export has ended, or the epoch is not later.
        """
        assert ticket.ticket_id == self.ticket.ticket_id, "another ticket"
        if self._outcome is not None or ticket.epoch <= self.ticket.epoch:
            return False
        self._cut_reader(Refused(StaleEpoch.code, f"epoch {ticket.epoch} has the ticket now"))
        self.ticket = ticket
        self.last_failure = None
        self.num_reads = 0
        self._opened.clear()
        self._expiry.cancel()
        self.touch()
        self._expiry = self._start_expiry()
        self._on_change(self)
        return True

    # --- for the session of a reader ----------------------------------------------------------

    def attach(self, reader: Reader) -> None:
        """A reader of the current epoch has opened; an earlier one of the same epoch is cut."""
        assert self._outcome is None, "attach after the end"
        self._cut_reader(Refused(StaleEpoch.code, "a newer reader of the same epoch took over"))
        self._reader = reader
        self.num_reads += 1
        self.last_failure = None
        self.touch()
        self._opened.set()

    def detach(self, reader: Reader, failure: PdserveError) -> None:
        """The reader's session is over without an Ack. Nothing if another one took over."""
        if reader is self._reader:
            self._reader = None
            self.last_failure = failure
            self.touch()

    def touch(self) -> None:
        """The read has moved on: the ticket's time begins anew."""
        self._moved_s = self._clock.now()

    def acknowledge(self, reader: Reader) -> None:
        """The reader has verified everything."""
        if reader is self._reader:
            self._reader = None
            self._end(ExportOutcome.ACKED, None)

    def _start_expiry(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._expire(), name=f"expiry {self.ticket.ticket_id}")

    async def _expire(self) -> None:
        expires_in_s = self.ticket.expires_in_s
        while True:
            left_s = self._moved_s + expires_in_s - self._clock.now()
            reader_waits = self._reader is not None and self.first_token is None
            if left_s <= 0 and not reader_waits:
                break
            await self._clock.sleep(left_s if left_s > 0 else max(expires_in_s, LEAST_PAUSE_S))
        detail = f"not read within {expires_in_s:g} s"
        self._end(ExportOutcome.EXPIRED, Refused(TicketExpired.code, detail))

    def _end(self, outcome: ExportOutcome, farewell: Refused | Finished | None) -> None:
        if self._outcome is not None:
            return
        self._outcome = outcome
        self.farewell = farewell
        if farewell is not None:
            self._cut_reader(farewell)
        if asyncio.current_task() is not self._expiry:
            self._expiry.cancel()
        self._ended.set()
        self._opened.set()
        self._on_change(self)

    def _wake_reader(self) -> None:
        if self._reader is not None:
            self._reader.wake()

    def _cut_reader(self, farewell: Refused | Finished) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cut(farewell)
