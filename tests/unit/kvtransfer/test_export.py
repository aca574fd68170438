import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kvtransfer.export import Export, ExportOutcome
from kvtransfer.messages import Finished, FirstTokenInfo, Refused
from pdserve.clock import ManualClock
from pdserve.errors import PeerUnreachable
from pdserve.types import TicketId, TransferTicket, WorkerId
from support.kv_pair import LAYOUT, settle

TICKET = TransferTicket(TicketId("t"), 1, WorkerId("p"), "a", (), LAYOUT, 6, expires_in_s=30.0)


class NoLease:
    """An export only hands its lease on."""

    block_ids = ()
    num_blocks = 2

    def block_at(self, position: int) -> int:
        raise AssertionError

    def pin(self) -> None:
        raise AssertionError

    unpin = release = pin


class RecordingReader:
    def __init__(self) -> None:
        self.num_wakes = 0
        self.farewells: list[Refused | Finished] = []

    def wake(self) -> None:
        self.num_wakes += 1

    def cut(self, farewell: Refused | Finished) -> None:
        self.farewells.append(farewell)


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.num_changes = 0
        self.export = Export(TICKET, NoLease(), 6, self.clock, self._changed)
        self.reader = RecordingReader()

    def _changed(self, export: Export) -> None:
        self.num_changes += 1


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await settle()
    yield bench
    bench.export.close("ticket_unknown", "end of test")
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_reader_opens_follows_and_acknowledges(bench: Bench) -> None:
    export, reader = bench.export, bench.reader
    opened = asyncio.create_task(export.wait_opened())
    await settle()
    assert not opened.done()
    export.attach(reader)
    assert await opened
    assert export.is_open
    export.advance(4)
    export.advance(6)
    export.commit(FirstTokenInfo(0, 5))
    assert reader.num_wakes == 3
    export.acknowledge(reader)
    assert await export.outcome() is ExportOutcome.ACKED
    assert not export.is_open
    assert reader.farewells == []
    assert bench.num_changes == 1


async def test_failed_reader_leaves_it_held(bench: Bench) -> None:
    export = bench.export
    assert not export.is_held
    export.attach(bench.reader)
    assert not export.is_held
    failure = PeerUnreachable("gone")
    export.detach(bench.reader, failure)
    assert export.is_held
    assert not export.has_ended
    assert export.last_failure is failure
    export.advance(6)  # computing goes on without a reader


async def test_newer_reader_of_the_same_epoch_replaces_the_older(bench: Bench) -> None:
    export, newer = bench.export, RecordingReader()
    export.attach(bench.reader)
    export.attach(newer)
    assert [farewell.code for farewell in bench.reader.farewells] == ["stale_epoch"]
    export.detach(bench.reader, PeerUnreachable("late"))
    export.acknowledge(bench.reader)
    assert export.is_open, "the older reader's end touched the newer one"
    export.acknowledge(newer)
    assert await export.outcome() is ExportOutcome.ACKED


async def test_rearm_fences_the_reader_and_waits_for_another(bench: Bench) -> None:
    export = bench.export
    export.attach(bench.reader)
    assert export.rearm(replace(TICKET, epoch=3))
    assert [farewell.code for farewell in bench.reader.farewells] == ["stale_epoch"]
    assert not export.is_open
    assert not export.is_held
    opened = asyncio.create_task(export.wait_opened())
    await settle()
    assert not opened.done()
    export.attach(RecordingReader())
    assert await opened
    assert bench.num_changes == 1


@pytest.mark.parametrize("epoch", [0, 1])
async def test_rearm_wants_a_later_epoch(bench: Bench, epoch: int) -> None:
    bench.export.attach(bench.reader)
    assert not bench.export.rearm(replace(TICKET, epoch=epoch))
    assert bench.export.is_open
    assert bench.reader.farewells == []


async def test_rearm_after_the_end_does_nothing(bench: Bench) -> None:
    bench.export.close("ticket_unknown", "cancelled")
    assert not bench.export.rearm(replace(TICKET, epoch=2))
    assert await bench.export.outcome() is ExportOutcome.CLOSED


async def passes(bench: Bench, by_s: float) -> bool:
    """So much time passes; is the export still there?"""
    bench.clock.advance(by_s)
    await settle()
    return not bench.export.has_ended


def compute(export: Export) -> None:
    export.advance(6)
    export.commit(FirstTokenInfo(0, 5))


async def test_time_runs_out_once_all_is_computed(bench: Bench) -> None:
    bench.export.attach(bench.reader)
    compute(bench.export)
    assert await passes(bench, 29.9)
    assert not await passes(bench, 0.2)
    assert await bench.export.outcome() is ExportOutcome.EXPIRED
    assert [farewell.code for farewell in bench.reader.farewells] == ["ticket_expired"]


async def test_time_runs_while_nobody_reads(bench: Bench) -> None:
    assert await passes(bench, 29.9)
    assert not await passes(bench, 0.2)


async def test_time_stands_still_while_a_reader_waits_for_a_prompt(bench: Bench) -> None:
    bench.export.attach(bench.reader)
    for num_computed in (0, 4, 4, 6):
        bench.export.advance(num_computed)
        assert await passes(bench, 100.0)
    bench.export.commit(FirstTokenInfo(0, 5))
    assert await passes(bench, 29.9)
    assert not await passes(bench, 0.2)


async def test_a_reader_that_goes_while_the_prompt_computes_begins_the_time(bench: Bench) -> None:
    bench.export.attach(bench.reader)
    assert await passes(bench, 100.0)
    bench.export.detach(bench.reader, PeerUnreachable("gone"))
    assert await passes(bench, 29.9)
    assert not await passes(bench, 0.2)


@pytest.mark.parametrize("move", ["touch", "advance", "commit", "attach", "detach"])
async def test_whatever_moves_the_read_on_begins_the_time_anew(bench: Bench, move: str) -> None:
    export = bench.export
    if move in ("touch", "attach", "detach"):
        export.attach(bench.reader)
        compute(export)
    assert await passes(bench, 29.0)
    match move:
        case "touch":
            export.touch()
        case "advance":
            export.advance(4)
        case "commit":
            compute(export)
        case "attach":
            export.attach(RecordingReader())
        case "detach":
            export.detach(bench.reader, PeerUnreachable("gone"))
    assert await passes(bench, 29.0)
    assert not await passes(bench, 1.1)


async def test_a_ticket_without_time_waits_for_its_reader_all_the_same(bench: Bench) -> None:
    assert bench.export.rearm(replace(TICKET, epoch=2, expires_in_s=0.0))
    bench.export.attach(bench.reader)
    for _ in range(3):
        assert await passes(bench, 1.0)
    compute(bench.export)
    assert not await passes(bench, 1.0)


async def test_rearm_gives_new_time(bench: Bench) -> None:
    bench.clock.advance(20.0)
    assert bench.export.rearm(replace(TICKET, epoch=2, expires_in_s=50.0))
    await settle()
    bench.clock.advance(49.0)
    await settle()
    assert not bench.export.has_ended
    bench.clock.advance(2.0)
    assert await bench.export.outcome() is ExportOutcome.EXPIRED


async def test_first_token_was_the_last(bench: Bench) -> None:
    bench.export.attach(bench.reader)
    bench.export.finish_early()
    assert bench.reader.farewells == [Finished()]
    assert bench.export.farewell == Finished()
    assert await bench.export.outcome() is ExportOutcome.CLOSED


async def test_whoever_waits_for_a_reader_learns_of_the_end(bench: Bench) -> None:
    opened = asyncio.create_task(bench.export.wait_opened())
    await settle()
    bench.export.close("ticket_unknown", "cancelled")
    assert not await opened


async def test_only_the_first_end_counts(bench: Bench) -> None:
    bench.export.attach(bench.reader)
    bench.export.acknowledge(bench.reader)
    bench.export.close("ticket_unknown", "cancelled")
    bench.export.finish_early()
    bench.clock.advance(100.0)
    await settle()
    assert await bench.export.outcome() is ExportOutcome.ACKED
    assert bench.num_changes == 1


async def test_progress_is_checked(bench: Bench) -> None:
    bench.export.advance(4)
    for wrong in (3, 7):
        with pytest.raises(AssertionError):
            bench.export.advance(wrong)
    with pytest.raises(AssertionError):
        bench.export.commit(FirstTokenInfo(0, 5))
