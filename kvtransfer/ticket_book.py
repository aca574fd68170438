"""Which tickets are offered here, and what a reader that opens one is told.

Tickets that ended are remembered for a while (the last ``NUM_REMEMBERED``), so that a late reader
is answered at once instead of waiting for an offer that will not come. Policy only: knows no
connection.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from kvtransfer.export import Export
from kvtransfer.messages import Finished, Open, Refused
from pdserve.errors import LayoutMismatch, StaleEpoch, TicketUnknown
from pdserve.types import KVLayout, TicketId

NUM_REMEMBERED = 1024


class Waiter(Protocol):
    def wake(self) -> None: ...


class TicketBook:
    """Exports by ticket, readers that wait for one."""

    def __init__(self, layout: KVLayout) -> None:
        self._layout = layout
        self._exports: dict[TicketId, Export] = {}
        self._past: OrderedDict[TicketId, tuple[int, Refused | Finished]] = OrderedDict()
        self._waiting: dict[TicketId, set[Waiter]] = {}

    @property
    def exports(self) -> tuple[Export, ...]:
        return tuple(self._exports.values())

    def enter(self, export: Export) -> None:
        """Raises ValueError if the ticket is offered already (re-arm it instead)."""
        ticket_id = export.ticket.ticket_id
        if ticket_id in self._exports:
            raise ValueError(f"ticket {ticket_id} is offered already")
        self._past.pop(ticket_id, None)
        self._exports[ticket_id] = export
        self._wake(ticket_id)

    def changed(self, export: Export) -> None:
        """The export was re-armed or has ended."""
        ticket = export.ticket
        if export.has_ended and self._exports.get(ticket.ticket_id) is export:
            del self._exports[ticket.ticket_id]
            farewell = export.farewell or Refused(TicketUnknown.code, "already redeemed")
            self._past[ticket.ticket_id] = (ticket.epoch, farewell)
            while len(self._past) > NUM_REMEMBERED:
                self._past.popitem(last=False)
        self._wake(ticket.ticket_id)

    def find(self, opening: Open) -> Export | Refused | Finished | None:
        """What this reader gets; None: its ticket (or its epoch of it) may still be offered."""
        if (name := self._layout.first_obstacle(opening.layout)) is not None:
            ours, theirs = getattr(self._layout, name), getattr(opening.layout, name)
            return Refused(LayoutMismatch.code, f"{name}: holder {ours}, reader {theirs}")
        export = self._exports.get(opening.ticket_id)
        if export is None:
            past_epoch, farewell = self._past.get(opening.ticket_id, (-1, None))
            return farewell if opening.epoch <= past_epoch else None
        epoch = export.ticket.epoch
        if opening.epoch < epoch:
            return Refused(StaleEpoch.code, f"epoch {opening.epoch}, epoch {epoch} has the ticket")
        return export if opening.epoch == epoch else None

    def watch(self, ticket_id: TicketId, waiter: Waiter) -> None:
        """Wake the waiter whenever ``find`` may answer differently for this ticket."""
        self._waiting.setdefault(ticket_id, set()).add(waiter)

    def unwatch(self, ticket_id: TicketId, waiter: Waiter) -> None:
        waiters = self._waiting.get(ticket_id, set())
        waiters.discard(waiter)
        if not waiters:
            self._waiting.pop(ticket_id, None)

    def _wake(self, ticket_id: TicketId) -> None:
        for waiter in tuple(self._waiting.get(ticket_id, ())):
            waiter.wake()
