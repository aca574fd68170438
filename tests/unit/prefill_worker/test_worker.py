"""Every row of the prefill leg's table (docs/protocol.md 3), with a reader played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.fake_model import EOS_TOKEN_ID, prepare_fake_model
from engine.fake_runner import FakeRunner, fake_tokens
from engine.step import SampledToken, StepRow
from kvtransfer.config import TransferConfig
from kvtransfer.messages import FirstTokenInfo
from pdserve.clock import ManualClock
from pdserve.errors import ProtocolError
from pdserve.messages import (
    PROTOCOL_VERSION,
    Admitted,
    Busy,
    Ended,
    Failed,
    FirstToken,
    Hello,
    Submit,
)
from pdserve.prepared import PreparedModel
from pdserve.types import (
    FinishReason,
    Leg,
    RequestId,
    Role,
    SamplingParams,
    TicketId,
    TransferTicket,
    WorkerId,
    WorkerLimits,
)
from prefill_worker.config import PrefillConfig
from prefill_worker.worker import PrefillWorker
from support.fake_engine import make_attempt
from support.recording_sink import RecordingSink
from support.stand_in_exporter import StandInExport, StandInExporter

NUM_BLOCKS = 16
BLOCK_SIZE = 4
CHUNK = 8
MANY = SamplingParams(max_tokens=50, ignore_eos=True)


class GatedRunner(FakeRunner):
    """A fake runner whose steps wait at a gate that the test can shut."""

    gate: asyncio.Event
    entered: asyncio.Event
    failure: Exception | None = None

    async def run(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        self.entered.set()
        await self.gate.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return await super().run(rows)


class Bench:
    def __init__(self, prepared: PreparedModel, open_timeout_s: float) -> None:
        self.clock = ManualClock()
        self.runner = GatedRunner(
            prepared, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS, clock=self.clock
        )
        self.runner.gate = asyncio.Event()
        self.runner.gate.set()
        self.runner.entered = asyncio.Event()
        self.pool = BlockPool(NUM_BLOCKS)
        self.exporter = StandInExporter()
        self.sink = RecordingSink()
        config = PrefillConfig(
            engine=EngineConfig(engine="fake", block_size=BLOCK_SIZE, chunk_tokens=CHUNK),
            transfer=TransferConfig(open_timeout_s=open_timeout_s),
        )
        hello = Hello(
            PROTOCOL_VERSION, WorkerId("p1"), "inc", Role.PREFILL, "fake", prepared.fingerprint,
            self.runner.layout, WorkerLimits(60, NUM_BLOCKS, CHUNK, 1, 320), (), "fake",
        )  # fmt: skip
        self.worker = PrefillWorker(
            config, hello, self.runner, self.pool, self.exporter, self.clock  # type: ignore[arg-type]
        )  # fmt: skip
        self.worker.loop.start()

    def ticket(self, num_tokens: int, *, epoch: int = 1, name: str = "t1") -> TransferTicket:
        return TransferTicket(
            TicketId(name), epoch, WorkerId("p1"), "inc", (), self.runner.layout, num_tokens, 120.0
        )

    def submit(
        self,
        num_tokens: int = 20,
        *,
        request_id: str = "r1",
        epoch: int = 1,
        ticket: str | None = "t1",
        sampling: SamplingParams = MANY,
        forced_ids: Sequence[int] = (),
        priority: int = 0,
        sink: RecordingSink | None = None,
    ) -> StandInExport | None:
        """Submit a prefill leg; its export if it was offered one."""
        attempt = make_attempt(
            prompt(num_tokens), request_id=request_id, epoch=epoch, sampling=sampling,
            forced_ids=forced_ids, priority=priority,
        )  # fmt: skip
        claim = (
            None if ticket is None
            else self.ticket(attempt.num_context_tokens, epoch=epoch, name=ticket)
        )  # fmt: skip
        self.worker.submit(Submit(1, Leg.PREFILL, attempt, claim), sink or self.sink)
        return self.exporter.exports.get(TicketId(ticket)) if ticket is not None else None

    def submit_with_ticket(self, num_tokens: int = 20, *, epoch: int = 1) -> StandInExport:
        export = self.submit(num_tokens, epoch=epoch)
        assert export is not None
        return export

    async def computed(self) -> StandInExport:
        """A leg whose first token is reported and whose reader has not acknowledged."""
        export = self.submit_with_ticket()
        export.open()
        await self.sink.first(FirstToken)
        return export

    async def computing(self) -> StandInExport:
        """A leg in the middle of its first step; open the gate to let it go on."""
        self.runner.gate.clear()
        export = self.submit_with_ticket()
        export.open()
        await self.runner.entered.wait()
        return export


def prompt(num_tokens: int) -> list[int]:
    return [40 + i % 50 for i in range(num_tokens)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    folder: Path = tmp_path_factory.mktemp("models")
    return prepare_fake_model(folder)


@pytest.fixture
def open_timeout_s() -> float:
    return 20.0


@pytest.fixture
async def bench(prepared: PreparedModel, open_timeout_s: float) -> AsyncIterator[Bench]:
    num_tasks = len(asyncio.all_tasks())
    bench = Bench(prepared, open_timeout_s)
    yield bench
    bench.runner.gate.set()
    await bench.worker.close()
    await bench.worker.drained()
    await asyncio.sleep(0)
    assert bench.pool.num_free == NUM_BLOCKS
    assert len(bench.sink.of(Admitted)) == len(bench.sink.of(Ended))
    assert len(asyncio.all_tasks()) == num_tasks
    for export in bench.exporter.exports.values():
        assert export.lease.num_blocks == 0


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_without_a_ticket_it_computes_reports_and_ends(bench: Bench) -> None:
    bench.submit(20, ticket=None, sampling=SamplingParams(max_tokens=1))
    await bench.sink.first(Ended)
    assert bench.sink.kinds == ["Admitted", "FirstToken", "Ended"]
    token = bench.sink.of(FirstToken)[0].token
    assert [token.token_id] == fake_tokens(prompt(20), SamplingParams(max_tokens=1))
    assert (token.index, token.finish_reason) == (0, FinishReason.LENGTH)
    assert bench.worker.loop.num_steps == 3  # 8 + 8 + 4 tokens
    assert bench.sink.num_status_changes >= 2


async def test_waits_for_its_reader_then_exports_chunk_by_chunk(bench: Bench) -> None:
    export = bench.submit_with_ticket(20)
    await settle()
    status = bench.worker.status()
    assert (status.num_queued, status.queued_tokens, status.step) == (1, 20, 0)
    assert status.free_blocks == NUM_BLOCKS - 5
    export.open()
    first = await bench.sink.first(FirstToken)
    assert export.advanced == [8, 16, 20]
    assert export.committed == FirstTokenInfo(0, first.token.token_id)
    assert first.token.token_id == fake_tokens(prompt(20), MANY)[0]
    status = bench.worker.status()
    assert (status.num_exported, status.exported_tokens, status.queued_tokens) == (1, 20, 0)
    assert bench.pool.num_free == NUM_BLOCKS - 5
    export.ack()
    await bench.sink.first(Ended)
    assert bench.sink.kinds == ["Admitted", "FirstToken", "Ended"]


async def test_forced_tokens_are_context_and_the_next_index_is_sampled(bench: Bench) -> None:
    tokens = fake_tokens(prompt(6), MANY)
    bench.submit(6, ticket=None, forced_ids=tokens[:5])
    first = await bench.sink.first(FirstToken)
    assert (first.token.index, first.token.token_id) == (5, tokens[5])


async def test_timing_is_measured_on_the_clock(bench: Bench) -> None:
    export = bench.submit_with_ticket(12)
    bench.clock.advance(0.5)
    bench.runner.gate.clear()
    export.open()
    await bench.runner.entered.wait()
    bench.clock.advance(0.25)
    bench.runner.gate.set()
    first = await bench.sink.first(FirstToken)
    assert (first.timing.queue_s, first.timing.compute_s) == (0.5, 0.25)


async def test_terminal_first_token_finishes_the_reader(bench: Bench) -> None:
    stop = fake_tokens(prompt(9), MANY)[0]
    export = bench.submit(9, sampling=replace(MANY, stop_token_ids=(stop,)))
    assert export is not None
    export.open()
    await bench.sink.first(Ended)
    assert export.finished_early
    assert export.committed is None
    assert export.closed is None
    assert bench.sink.of(FirstToken)[0].token.finish_reason is FinishReason.STOP


async def test_end_of_sequence_as_first_token(bench: Bench) -> None:
    sampling = SamplingParams(max_tokens=50)
    length = next(n for n in range(1, 60) if fake_tokens(prompt(n), sampling)[0] == EOS_TOKEN_ID)
    bench.submit(length, ticket=None, sampling=sampling)
    first = await bench.sink.first(FirstToken)
    assert first.token.finish_reason is FinishReason.STOP
    await bench.sink.first(Ended)


async def test_busy_without_blocks_for_the_whole_context(bench: Bench) -> None:
    bench.runner.gate.clear()
    bench.submit(40, ticket=None, request_id="r1")
    bench.submit(25, ticket=None, request_id="r2")
    assert bench.sink.events[-1] == Busy(RequestId("r2"), 1, Leg.PREFILL, NUM_BLOCKS - 10)
    bench.submit(24, ticket=None, request_id="r3")
    assert isinstance(bench.sink.events[-1], Admitted)
    bench.runner.gate.set()
    await bench.sink.number(Ended, 2)


async def test_draining_answers_busy_and_lets_legs_end(bench: Bench) -> None:
    export = await bench.computed()
    bench.worker.begin_drain()
    bench.submit(4, request_id="r2", ticket="t2")
    assert isinstance(bench.sink.events[-1], Busy)
    assert bench.worker.status().draining
    drained = asyncio.create_task(bench.worker.drained())
    await settle()
    assert not drained.done()
    export.ack()
    await drained
    assert bench.sink.kinds[-1] == "Ended"


@pytest.mark.parametrize("open_timeout_s", [0.0])
async def test_no_reader_in_time(bench: Bench) -> None:
    export = bench.submit_with_ticket()
    failed = await bench.sink.first(Failed)
    assert failed.code == "peer_silent"
    assert export.closed is not None
    assert bench.worker.loop.num_steps == 0
    await bench.sink.first(Ended)


@pytest.mark.parametrize("state", ["waiting", "computing", "computed"])
async def test_expiry_fails_the_leg(bench: Bench, state: str) -> None:
    export = await reach(bench, state)
    export.expire()
    failed = await bench.sink.first(Failed)
    bench.runner.gate.set()
    await bench.sink.first(Ended)
    assert failed.code == "ticket_expired"


async def reach(bench: Bench, state: str) -> StandInExport:
    match state:
        case "waiting":
            return bench.submit_with_ticket()
        case "queued":
            export = bench.submit_with_ticket()
            export.open()
            return export
        case "computing":
            return await bench.computing()
        case "computed":
            return await bench.computed()
        case _:
            raise AssertionError(state)


@pytest.mark.parametrize("how", ["cancel", "session ended", "close"])
@pytest.mark.parametrize("state", ["waiting", "queued", "computing", "computed"])
async def test_a_leg_can_be_stopped_in_every_state(bench: Bench, state: str, how: str) -> None:
    export = await reach(bench, state)
    if how == "cancel":
        bench.worker.cancel(RequestId("r1"), 1, "client left", bench.sink)
    elif how == "session ended":
        bench.worker.session_ended(bench.sink)
    else:
        bench.runner.gate.set()
        await bench.worker.close()
    assert export.closed is not None
    assert export.closed[0] == "ticket_unknown"
    if how != "close":
        # What a running step touches comes back only after it.
        ended = bench.sink.of(Ended)
        assert (bench.pool.num_free < NUM_BLOCKS, ended == []) == (state == "computing",) * 2
        assert bench.worker.status().num_queued == 0
    bench.runner.gate.set()
    await bench.sink.first(Ended)
    await settle()
    assert bench.sink.of(Ended) == [Ended(RequestId("r1"), 1, Leg.PREFILL)]
    assert len(bench.sink.of(FirstToken)) == (state == "computed")
    assert bench.sink.of(Failed) == []


async def test_cancel_without_ticket_while_computing(bench: Bench) -> None:
    bench.runner.gate.clear()
    bench.submit(20, ticket=None)
    await bench.runner.entered.wait()
    bench.worker.cancel(RequestId("r1"), 1, "x", bench.sink)
    bench.runner.gate.set()
    await bench.sink.first(Ended)
    assert bench.worker.loop.num_steps == 1


async def test_cancel_of_unknown_older_or_foreign_legs_does_nothing(bench: Bench) -> None:
    export = bench.submit_with_ticket(epoch=3)
    other = RecordingSink()
    bench.worker.cancel(RequestId("r9"), 9, "x", bench.sink)
    bench.worker.cancel(RequestId("r1"), 2, "x", bench.sink)
    bench.worker.cancel(RequestId("r1"), 3, "x", other)
    bench.worker.session_ended(other)
    await settle()
    assert export.closed is None
    assert bench.sink.kinds == ["Admitted"]
    assert other.events == []


async def test_a_blocks_last_pin_of_a_sender_delays_ended(bench: Bench) -> None:
    export = await bench.computed()
    export.lease.pin()
    bench.worker.cancel(RequestId("r1"), 1, "x", bench.sink)
    await settle()
    assert bench.sink.of(Ended) == []
    export.lease.unpin()
    await bench.sink.first(Ended)


@pytest.mark.parametrize("state", ["waiting", "queued", "computing", "computed"])
async def test_redeem_hands_everything_to_the_later_epoch(bench: Bench, state: str) -> None:
    export = await reach(bench, state)
    again = bench.submit_with_ticket(epoch=2)
    assert again is export
    kinds = bench.sink.kinds
    first_ended = kinds.index("Ended")
    assert kinds[first_ended : first_ended + 2] == ["Ended", "Admitted"]
    assert bench.sink.of(Ended) == [Ended(RequestId("r1"), 1, Leg.PREFILL)]
    bench.runner.gate.set()
    export.open()
    await bench.sink.until(
        lambda sink: any(event.token.epoch == 2 for event in sink.of(FirstToken))
    )
    tokens = bench.sink.of(FirstToken)
    assert len({event.token.token_id for event in tokens}) == 1
    assert len(tokens) == 1 + (state == "computed")
    assert export.advanced == [8, 16, 20]  # computed once
    export.ack()
    await bench.sink.number(Ended, 2)
    assert bench.sink.of(Ended)[1].epoch == 2


@pytest.mark.parametrize("open_timeout_s", [0.05])
async def test_redeem_that_nobody_opens_fails(bench: Bench) -> None:
    await bench.computed()
    bench.submit_with_ticket(epoch=2)
    failed = await bench.sink.first(Failed)
    assert (failed.epoch, failed.code) == (2, "peer_silent")
    await bench.sink.number(Ended, 2)


async def test_redeem_of_a_ticket_that_is_gone_computes_again(bench: Bench) -> None:
    export = await bench.computed()
    export.ack()
    await bench.sink.first(Ended)
    again = bench.submit_with_ticket(epoch=2)
    assert again is not export
    again.open()
    await bench.sink.number(FirstToken, 2)
    assert again.committed == export.committed


async def test_later_epoch_with_other_tokens_replaces_the_leg(bench: Bench) -> None:
    export = await bench.computed()
    token = bench.sink.of(FirstToken)[0].token.token_id
    again = bench.submit(20, epoch=2, ticket="t2", forced_ids=[token])
    assert again is not None
    assert export.closed is not None
    assert bench.sink.kinds == ["Admitted", "FirstToken", "Ended", "Admitted"]
    again.open()
    first = (await bench.sink.number(FirstToken, 2))[1]
    assert (first.token.index, first.token.token_id) == (1, fake_tokens(prompt(20), MANY)[1])


@pytest.mark.parametrize("epoch", [1, 2])
async def test_a_stale_epoch_is_refused_and_changes_nothing(bench: Bench, epoch: int) -> None:
    export = bench.submit_with_ticket(epoch=2)
    bench.submit_with_ticket(epoch=epoch)
    assert bench.sink.kinds == ["Admitted", "Busy"]
    assert export.closed is None


async def test_failed_step_fails_its_legs_and_spares_the_others(bench: Bench) -> None:
    export = await bench.computing()
    other = bench.submit(8, request_id="r2", ticket="t2")
    assert other is not None
    bench.runner.failure = RuntimeError("device lost")
    bench.runner.gate.set()
    failed = await bench.sink.first(Failed)
    assert (failed.request_id, failed.code) == ("r1", "engine_failure")
    assert "device lost" in failed.detail
    assert export.closed is not None
    other.open()
    assert (await bench.sink.first(FirstToken)).token.request_id == "r2"


async def test_priority_goes_before_arrival(bench: Bench) -> None:
    bench.runner.gate.clear()
    bench.submit(8, ticket=None, request_id="r0")
    await bench.runner.entered.wait()
    bench.submit(8, ticket=None, request_id="late", priority=5)
    bench.submit(8, ticket=None, request_id="urgent", priority=-1)
    bench.runner.gate.set()
    first_tokens = await bench.sink.number(FirstToken, 3)
    assert [event.token.request_id for event in first_tokens] == ["r0", "urgent", "late"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"num_tokens": 61}, "invalid_request", "at most 60"),
        ({"token": 320}, "invalid_request", "token id 320"),
        ({"token": -1}, "invalid_request", "token id -1"),
        ({"incarnation": "older"}, "ticket_unknown", "older"),
        ({"ticket_epoch": 4}, "invalid_request", "epoch 4"),
        ({"ticket_tokens": 9}, "invalid_request", "num_tokens 9"),
    ],
)
async def test_what_can_never_work_is_admitted_and_fails_at_once(
    bench: Bench, change: dict[str, object], code: str, words: str
) -> None:
    ids = prompt(int(str(change.get("num_tokens", 8))))
    ids[-1] = int(str(change.get("token", ids[-1])))
    ticket = replace(
        bench.ticket(int(str(change.get("ticket_tokens", len(ids))))),
        incarnation=str(change.get("incarnation", "inc")),
        epoch=int(str(change.get("ticket_epoch", 1))),
    )
    bench.worker.submit(
        Submit(1, Leg.PREFILL, make_attempt(ids, sampling=MANY), ticket), bench.sink
    )
    assert bench.sink.kinds == ["Admitted", "Failed", "Ended"]
    failed = bench.sink.of(Failed)[0]
    assert failed.code == code
    assert words in failed.detail
    assert bench.exporter.exports == {}


async def test_other_legs_are_a_protocol_error(bench: Bench) -> None:
    with pytest.raises(ProtocolError, match="decode leg"):
        bench.worker.submit(Submit(1, Leg.DECODE, make_attempt([1]), None), bench.sink)
    assert bench.sink.events == []


async def test_many_prompts_all_end_with_their_own_tokens(bench: Bench) -> None:
    lengths = [1, 3, 4, 5, 7, 8, 9, 12]
    for length in lengths:
        bench.submit(length, ticket=None, request_id=f"r{length}")
    await bench.sink.number(Ended, len(bench.sink.of(Admitted)))
    for event in bench.sink.of(FirstToken):
        length = int(event.token.request_id[1:])
        assert event.token.token_id == fake_tokens(prompt(length), MANY)[0]
    assert len(bench.sink.of(FirstToken)) == len(bench.sink.of(Admitted)) >= 5
