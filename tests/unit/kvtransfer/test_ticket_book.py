from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kvtransfer.export import Export
from kvtransfer.messages import Finished, Open, Refused
from kvtransfer.ticket_book import NUM_REMEMBERED, TicketBook
from pdserve.clock import ManualClock
from pdserve.types import KVLayout, TicketId, TransferTicket, WorkerId
from support.kv_pair import LAYOUT, settle


class CountingWaiter:
    def __init__(self) -> None:
        self.num_wakes = 0

    def wake(self) -> None:
        self.num_wakes += 1


class SilentReader:
    def wake(self) -> None:
        pass

    def cut(self, farewell: Refused | Finished) -> None:
        pass


class EmptyLease:
    block_ids = ()
    num_blocks = 0

    def block_at(self, position: int) -> int:
        raise AssertionError

    def pin(self) -> None:
        raise AssertionError

    unpin = release = pin


class Shelf(TicketBook):
    """A book that makes its exports."""

    def offer(self, name: str = "t", epoch: int = 2) -> Export:
        ticket = TransferTicket(TicketId(name), epoch, WorkerId("p"), "a", (), LAYOUT, 4, 60.0)
        export = Export(ticket, EmptyLease(), 4, ManualClock(), self.changed)
        self.enter(export)
        return export


@pytest.fixture
async def book() -> AsyncIterator[Shelf]:
    book = Shelf(LAYOUT)
    yield book
    for export in book.exports:
        export.close("ticket_unknown", "end of test")
    assert book.exports == ()
    await settle()


def opening(name: str = "t", epoch: int = 2, layout: KVLayout = LAYOUT) -> Open:
    return Open(TicketId(name), epoch, WorkerId("d"), "b", layout)


def code_of(answer: object) -> str:
    assert isinstance(answer, Refused)
    return answer.code


async def test_the_right_epoch_gets_the_export(book: Shelf) -> None:
    assert book.find(opening()) is None
    export = book.offer()
    assert book.find(opening()) is export


async def test_lower_epochs_are_stale_and_higher_ones_wait(book: Shelf) -> None:
    export = book.offer()
    assert code_of(book.find(opening(epoch=1))) == "stale_epoch"
    assert book.find(opening(epoch=3)) is None
    export.rearm(replace(export.ticket, epoch=3))
    assert book.find(opening(epoch=3)) is export
    assert code_of(book.find(opening(epoch=2))) == "stale_epoch"


async def test_held_tickets_may_be_opened_again_in_their_epoch(book: Shelf) -> None:
    export = book.offer()
    reader = SilentReader()
    export.attach(reader)
    assert book.find(opening()) is export


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", "layer,head,kv,token,dim"),
        ("num_layers", 3),
        ("num_kv_heads", 2),
        ("first_kv_head", 1),
        ("head_dim", 8),
    ],
)
async def test_another_layout_is_refused_by_field(book: Shelf, name: str, value: object) -> None:
    book.offer()
    answer = book.find(opening(layout=replace(LAYOUT, **{name: value})))  # type: ignore[arg-type]
    assert isinstance(answer, Refused)
    assert answer.code == "layout_mismatch"
    assert answer.detail.startswith(f"{name}: ")
    assert str(value) in answer.detail


async def test_late_readers_are_told_how_it_ended(book: Shelf) -> None:
    book.offer("closed").close("ticket_unknown", "cancelled: client left")
    book.offer("finished").finish_early()
    acked = book.offer("acked")
    reader = SilentReader()
    acked.attach(reader)
    acked.acknowledge(reader)
    assert book.find(opening("closed")) == Refused("ticket_unknown", "cancelled: client left")
    assert book.find(opening("finished")) == Finished()
    assert code_of(book.find(opening("acked"))) == "ticket_unknown"
    assert book.find(opening("closed", epoch=3)) is None, "a later epoch may still come"


async def test_a_ticket_may_come_again_after_its_end(book: Shelf) -> None:
    book.offer().close("ticket_unknown", "cancelled")
    again = book.offer(epoch=3)
    assert book.find(opening(epoch=3)) is again


async def test_a_ticket_is_offered_once(book: Shelf) -> None:
    book.offer()
    stray = Export(
        next(iter(book.exports)).ticket, EmptyLease(), 4, ManualClock(), lambda export: None
    )
    with pytest.raises(ValueError, match="offered already"):
        book.enter(stray)
    stray.close("ticket_unknown", "stray")


async def test_memory_of_ended_tickets_is_bounded(book: Shelf) -> None:
    for number in range(NUM_REMEMBERED + 1):
        book.offer(f"t{number}").finish_early()
    assert book.find(opening("t0")) is None
    assert book.find(opening("t1")) == Finished()


async def test_waiters_are_woken_for_their_ticket_only(book: Shelf) -> None:
    mine, others = CountingWaiter(), CountingWaiter()
    book.watch(TicketId("t"), mine)
    book.watch(TicketId("u"), others)
    export = book.offer()
    export.rearm(replace(export.ticket, epoch=3))
    export.close("ticket_unknown", "cancelled")
    assert (mine.num_wakes, others.num_wakes) == (3, 0)
    book.unwatch(TicketId("t"), mine)
    book.unwatch(TicketId("t"), mine)
    book.offer(epoch=4)
    assert mine.num_wakes == 3
