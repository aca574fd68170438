"""The decode leg's table (docs/protocol.md 3), row by row, with a scripted KV read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import cast

import pytest

from decode_worker.app import _hello as make_hello
from decode_worker.config import DecodeConfig
from decode_worker.worker import DecodeWorker
from engine.block_pool import BlockLease, BlockPool
from engine.config import EngineConfig
from engine.fake_model import prepare_fake_model
from engine.fake_runner import FakeRunner, fake_tokens
from kvtransfer.importer import ImportedKv, Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import FinishedAtPrefill
from pdserve.clock import MonotonicClock
from pdserve.errors import EngineFailure, FrameCorrupt
from pdserve.messages import (
    Admitted,
    AlreadyCommitted,
    Busy,
    Committed,
    Ended,
    Failed,
    FirstToken,
    KvFailed,
    Submit,
    Tokens,
)
from pdserve.types import Attempt, Leg, SamplingParams, TicketId, TransferTicket, WorkerId
from support.fake_engine import make_attempt
from support.recording_sink import RecordingSink
from support.scripted_importer import ScriptedImporter

BLOCK = 4


@dataclass
class Bench:
    worker: DecodeWorker
    pool: BlockPool
    importer: ScriptedImporter
    sink: RecordingSink
    runner: FakeRunner
    num_submits: int = 0

    def submit(self, attempt: Attempt, leg: Leg = Leg.DECODE) -> None:
        self.num_submits += 1
        ticket = None
        if leg is Leg.DECODE:
            ticket = TransferTicket(
                TicketId(f"{attempt.request.request_id}/{attempt.epoch}"), attempt.epoch,
                WorkerId("p"), "i", (), self.runner.layout, attempt.num_context_tokens, 60.0,
            )  # fmt: skip
            self.importer.attempts[ticket.ticket_id] = attempt
        self.worker.submit(Submit(self.num_submits, leg, attempt, ticket), self.sink)

    def ids(self, request_id: str = "r1") -> list[int]:
        """Token ids reported for a request, each index once."""
        by_index: dict[int, int] = {}
        for event in self.sink.events:
            found = event.tokens if isinstance(event, Tokens) else ()
            if isinstance(event, FirstToken):
                found = (event.token,)
            for token in found:
                if token.request_id == request_id:
                    assert by_index.setdefault(token.index, token.token_id) == token.token_id
        assert list(by_index) == list(range(min(by_index, default=0), len(by_index)))
        return list(by_index.values())


def runner_of(num_blocks: int) -> FakeRunner:
    return FakeRunner(
        prepare_fake_model(), block_size=BLOCK, num_blocks=num_blocks, clock=MonotonicClock(),
        dtype="float32", prefill_us_per_token=0.0, decode_step_ms=0.0,
    )  # fmt: skip


async def bench_of(num_blocks: int = 64, **options: object) -> Bench:
    config = replace(
        DecodeConfig(engine=EngineConfig(engine="fake", block_size=BLOCK, chunk_tokens=8)),
        **options,  # type: ignore[arg-type]
    )
    runner = runner_of(num_blocks)
    pool = BlockPool(num_blocks)
    importer = ScriptedImporter(runner, runner_of(256))
    hello = make_hello(config, prepare_fake_model(), runner)
    worker = DecodeWorker(config, hello, runner, pool, cast(Importer, importer), MonotonicClock())
    worker.loop.start()
    return Bench(worker, pool, importer, RecordingSink(), runner)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = await bench_of()
    yield made
    await settled(made)


async def settled(bench: Bench) -> None:
    """Nothing is left, and every Admitted had its Ended."""
    await bench.worker.close()
    assert bench.pool.num_free == bench.pool.num_blocks
    assert bench.worker.num_legs == 0
    status = bench.worker.status()
    assert (status.num_queued, status.num_running, status.num_parked) == (0, 0, 0)
    assert status.reserved_blocks == 0
    assert len(bench.sink.of(Admitted)) == len(bench.sink.of(Ended))


def attempt_of(
    num_prompt: int = 10, max_tokens: int = 12, request_id: str = "r1", epoch: int = 1,
    forced_ids: tuple[int, ...] = (), seed: int = 0,
) -> Attempt:  # fmt: skip
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=1.0, seed=seed)
    prompt = [65 + (i * 7 + len(request_id)) % 26 for i in range(num_prompt)]
    return make_attempt(
        prompt, request_id=request_id, epoch=epoch, forced_ids=forced_ids, sampling=sampling
    )


def oracle(attempt: Attempt) -> list[int]:
    sampling = attempt.request.sampling
    return fake_tokens(attempt.request.prompt_ids, sampling, sampling.max_tokens)


@pytest.mark.parametrize("num_prompt", [1, 3, 4, 5, 17])
async def test_kv_in_tokens_out(bench: Bench, num_prompt: int) -> None:
    attempt = attempt_of(num_prompt)
    bench.submit(attempt)
    await bench.sink.first(Ended)
    assert bench.ids() == oracle(attempt)
    assert bench.sink.kinds[:3] == ["Admitted", "Committed", "Tokens"]
    timed = [event for event in bench.sink.of(Tokens) if event.timing is not None]
    assert len(timed) == 1 and timed[0].tokens[0].index == 1


async def test_forced_tokens_go_on_where_they_end(bench: Bench) -> None:
    whole = oracle(attempt_of())
    bench.submit(attempt_of(forced_ids=tuple(whole[:5]), epoch=3))
    await bench.sink.first(Ended)
    tokens = [t for event in bench.sink.of(Tokens) for t in event.tokens]
    assert [t.index for t in tokens] == list(range(5, 12))
    assert [t.token_id for t in tokens] == whole[5:]


@pytest.mark.parametrize("num_prompt", [1, 7, 8, 9, 30])
async def test_colocated_computes_its_own_prompt(bench: Bench, num_prompt: int) -> None:
    attempt = attempt_of(num_prompt)
    bench.submit(attempt, Leg.COLOCATED)
    await bench.sink.first(Ended)
    assert bench.ids() == oracle(attempt)
    assert bench.sink.kinds[:2] == ["Admitted", "FirstToken"]
    assert not bench.sink.of(Committed)


async def test_colocated_single_token_ends_with_the_first(bench: Bench) -> None:
    bench.submit(attempt_of(max_tokens=1), Leg.COLOCATED)
    await bench.sink.first(Ended)
    assert bench.sink.kinds == ["Admitted", "FirstToken", "Ended"]


@pytest.mark.parametrize("parking", ["copy", "recompute"])
@pytest.mark.parametrize("leg", [Leg.DECODE, Leg.COLOCATED])
async def test_parking_changes_no_token(parking: str, leg: Leg) -> None:
    bench = await bench_of(num_blocks=16, parking=parking)
    attempts = [attempt_of(9, 30, f"r{i}", seed=i) for i in range(4)]
    for attempt in attempts:
        bench.submit(attempt, leg)
    await bench.sink.number(Ended, len(bench.sink.of(Admitted)))
    assert len(bench.sink.of(Admitted)) >= 3
    assert bench.worker.num_parkings > 0
    for event in bench.sink.of(Admitted):
        attempt = attempts[int(event.request_id[1:])]
        assert bench.ids(event.request_id) == oracle(attempt)
    await settled(bench)


async def test_busy_when_blocks_are_promised_although_none_is_leased() -> None:
    bench = await bench_of(num_blocks=8)
    bench.importer.let_open.clear()
    bench.submit(attempt_of(16, 4, "a"))
    bench.submit(attempt_of(16, 4, "b"))
    assert bench.pool.num_free == 8
    assert [event.request_id for event in bench.sink.of(Busy)] == ["b"]
    assert bench.worker.status().reserved_blocks == 5
    await settled(bench)


async def test_busy_at_max_running() -> None:
    bench = await bench_of(max_running=1)
    bench.importer.let_commit.clear()
    bench.submit(attempt_of(request_id="a"))
    bench.submit(attempt_of(request_id="b"))
    assert [type(event) for event in bench.sink.events] == [Admitted, Busy]
    await settled(bench)


async def test_busy_while_draining_and_drained_when_empty(bench: Bench) -> None:
    bench.submit(attempt_of(request_id="a"))
    bench.worker.begin_drain()
    bench.submit(attempt_of(request_id="b"))
    assert [event.request_id for event in bench.sink.of(Busy)] == ["b"]
    await bench.worker.drained()
    assert len(bench.ids("a")) == 12


async def test_what_can_never_fit_fails_at_once() -> None:
    bench = await bench_of(num_blocks=4)
    bench.submit(attempt_of(8, 100))
    assert bench.sink.kinds == ["Admitted", "Failed", "Ended"]
    await settled(bench)


async def test_failed_read_reports_and_gives_back(bench: Bench) -> None:
    bench.importer.fail_with = FrameCorrupt("checksum of frame 3")
    bench.submit(attempt_of())
    await bench.sink.first(Ended)
    (failed,) = bench.sink.of(KvFailed)
    assert failed.code == "frame_corrupt" and "frame 3" in failed.detail
    assert bench.sink.kinds == ["Admitted", "KvFailed", "Ended"]


async def test_finished_at_prefill_ends_without_a_word(bench: Bench) -> None:
    bench.importer.fail_with = FinishedAtPrefill()
    bench.submit(attempt_of())
    await bench.sink.first(Ended)
    assert bench.sink.kinds == ["Admitted", "Ended"]


@pytest.mark.parametrize("state", ["opening", "leasing", "receiving", "running", "parked"])
async def test_cancel_in_every_state_gives_everything_back(state: str) -> None:
    bench = await bench_of(num_blocks=12)
    blocker = None
    if state == "opening":
        bench.importer.let_open.clear()
    elif state == "receiving":
        bench.importer.let_commit.clear()
    elif state == "leasing":
        bench.importer.let_open.clear()
    bench.submit(attempt_of(9, 36, "r1"))
    if state == "leasing":
        blocker = bench.pool.lease(12)
        assert blocker is not None
        bench.importer.let_open.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert bench.importer.num_with_room == 0
    elif state == "receiving":
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert bench.importer.num_with_room == 1
    elif state == "running":
        await bench.sink.number(Tokens, 3)
    elif state == "parked":
        await bench.sink.number(Tokens, 2)
        blocker = bench.pool.lease(bench.pool.num_free)
        await bench.sink.until(lambda _: bench.worker.status().num_parked == 1)
    bench.worker.cancel(attempt_of().request.request_id, 1, "test", bench.sink)
    await bench.sink.first(Ended)
    assert bench.sink.kinds.count("Ended") == 1 and not bench.sink.of(KvFailed)
    if blocker is not None:
        blocker.release()
    await settled(bench)


async def test_a_leg_that_ended_as_its_read_asks_for_room_is_not_counted_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session lost in the turn of the loop in which the holder said Ready."""

    async def redeem(
        ticket: TransferTicket,
        make_room: Callable[[int], Awaitable[BlockLease]],
        intake: IntakeBudget,
    ) -> ImportedKv:
        asyncio.get_running_loop().call_soon(bench.worker.session_ended, bench.sink)
        room = asyncio.ensure_future(make_room(ticket.num_tokens))
        try:
            await asyncio.shield(room)
            raise AssertionError("not cancelled")
        finally:
            (await room).release()

    monkeypatch.setattr(bench.importer, "redeem", redeem)
    bench.submit(attempt_of())
    await bench.sink.first(Ended)
    assert bench.worker.status().num_queued == 0


async def test_cancel_of_a_lower_epoch_or_another_session_changes_nothing(bench: Bench) -> None:
    bench.submit(attempt_of(epoch=2))
    request_id = attempt_of().request.request_id
    bench.worker.cancel(request_id, 1, "old", bench.sink)
    bench.worker.cancel(request_id, 2, "not yours", RecordingSink())
    bench.worker.session_ended(RecordingSink())
    await bench.sink.first(Ended)
    assert len(bench.ids()) == 12


async def test_lost_session_ends_its_legs(bench: Bench) -> None:
    bench.importer.let_commit.clear()
    bench.submit(attempt_of(request_id="a"))
    bench.submit(attempt_of(request_id="b"))
    await asyncio.sleep(0)
    bench.worker.session_ended(bench.sink)
    await bench.sink.number(Ended, 2)
    assert bench.pool.num_free == bench.pool.num_blocks


async def test_later_epoch_replaces_an_uncommitted_leg(bench: Bench) -> None:
    bench.importer.let_commit.clear()
    bench.submit(attempt_of(epoch=1))
    bench.submit(attempt_of(epoch=2))
    bench.importer.let_commit.set()
    await bench.sink.number(Ended, 2)
    assert [event.epoch for event in bench.sink.of(Committed)] == [2]


async def test_later_epoch_after_commit_is_told_so(bench: Bench) -> None:
    bench.submit(attempt_of(max_tokens=200))
    await bench.sink.first(Committed)
    bench.submit(attempt_of(max_tokens=200, epoch=2))
    (told,) = bench.sink.of(AlreadyCommitted)
    assert (told.epoch, told.committed_epoch) == (2, 1)


async def test_step_that_raises_fails_its_legs_and_no_other(bench: Bench) -> None:
    bench.importer.let_commit.clear()
    bench.submit(attempt_of(request_id="bad", max_tokens=200))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.importer.let_commit.set()
    await bench.sink.first(Committed)
    for block_id in range(bench.pool.num_blocks):  # wreck the KV behind the worker's back
        bench.runner.buffers.view(block_id)[:] = bytes(bench.runner.layout.block_bytes)
    (failed,) = [await bench.sink.first(Failed)]
    assert failed.code == EngineFailure.code and "bad" in failed.detail
    bench.submit(attempt_of(request_id="good"))
    await bench.sink.number(Ended, 2)
    assert len(bench.ids("good")) == 12


async def test_thirty_two_at_once(bench: Bench) -> None:
    attempts = [attempt_of(5, 6, f"r{i}", seed=i) for i in range(32)]
    for attempt in attempts:
        bench.submit(attempt)
    admitted = [event.request_id for event in bench.sink.of(Admitted)]
    await bench.sink.number(Ended, len(admitted))
    for request_id in admitted:
        assert bench.ids(request_id) == oracle(attempts[int(request_id[1:])])
    assert len(admitted) > 20
