"""KV out of a prefill app into another engine over the in-process road, nothing stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.block_pool import BlockLease, BlockPool
from engine.build import build_runner
from engine.config import EngineConfig
from engine.fake_model import prepare_fake_model
from engine.fake_runner import fake_tokens
from engine.sequence import Sequence
from engine.step import StepRunner
from kvtransfer.config import TransferConfig
from kvtransfer.importer import FinishedAtPrefill, Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.transports.inproc import InprocNetwork
from pdserve.clock import MonotonicClock
from pdserve.errors import TicketUnknown
from pdserve.messages import Ended, FirstToken, Submit
from pdserve.types import (
    Attempt,
    Leg,
    RequestId,
    SamplingParams,
    TicketId,
    TransferTicket,
    WorkerId,
)
from prefill_worker.app import PrefillApp
from prefill_worker.config import PrefillConfig
from support.fake_engine import make_attempt, prompt_row
from support.recording_sink import RecordingSink

ENGINE = EngineConfig(
    engine="fake", block_size=8, chunk_tokens=16, kv_memory_mib=1.0, fake_prefill_us=0.0
)
PROMPT = list(range(40, 91))
SAMPLING = SamplingParams(max_tokens=9, ignore_eos=True)


class Pair:
    """A prefill app without routers, and the reading end of another worker."""

    def __init__(
        self, app: PrefillApp, importer: Importer, pool: BlockPool, runner: StepRunner
    ) -> None:
        self.app = app
        self.importer = importer
        self.pool = pool
        self.runner = runner  # the reading worker's
        self.sink = RecordingSink()

    def submit(self, attempt: Attempt) -> TransferTicket:
        hello = self.app.hello
        ticket = TransferTicket(
            TicketId("t1"), attempt.epoch, hello.worker_id, hello.incarnation, hello.endpoints,
            hello.layout, attempt.num_context_tokens, 60.0,
        )  # fmt: skip
        self.app.worker.submit(Submit(1, Leg.PREFILL, attempt, ticket), self.sink)
        return ticket

    async def redeem(self, attempt: Attempt, ticket: TransferTicket) -> Sequence:
        """The sequence as a decode worker would go on with it."""

        async def make_room(num_tokens: int) -> BlockLease:
            lease = self.pool.lease(ticket.layout.num_blocks(num_tokens + 1))
            assert lease is not None
            return lease

        imported = await self.importer.redeem(ticket, make_room, IntakeBudget(1 << 20))
        assert isinstance(imported.lease, BlockLease)
        sequence = Sequence(attempt, imported.lease)
        sequence.num_computed = imported.num_tokens
        sequence.append(imported.first_token.token_id)
        return sequence


@asynccontextmanager
async def running_pair(tmp_path: Path) -> AsyncIterator[Pair]:
    num_tasks = len(asyncio.all_tasks())
    model, clock, network = prepare_fake_model(tmp_path), MonotonicClock(), InprocNetwork()
    holder, reader = build_runner(ENGINE, model, clock), build_runner(ENGINE, model, clock)
    dialer = network.dialer()
    importer = Importer(
        reader.buffers, clock, TransferConfig(), WorkerId("d1"), "inc", {"inproc": dialer}
    )
    pair_pool = BlockPool(reader.buffers.num_blocks)
    config = PrefillConfig(engine=ENGINE, routers=())
    app = PrefillApp(config, model, holder, clock, listeners=[network.listener()])
    async with app:
        pair = Pair(app, importer, pair_pool, reader)
        yield pair
        await importer.close()
        await dialer.close()
    assert len(pair.sink.of(Ended)) == pair.sink.kinds.count("Admitted")
    assert app.pool.num_free == app.pool.num_blocks
    assert pair_pool.num_free == pair_pool.num_blocks
    assert len(asyncio.all_tasks()) == num_tasks


async def second_token(pair: Pair, sequence: Sequence) -> int:
    """One decode step, which checks every byte of the KV that came over."""
    (token,) = await pair.runner.run([prompt_row(sequence)])
    assert token is not None
    return token.token_id


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 16, 51])
async def test_kv_arrives_and_decoding_goes_on(tmp_path: Path, num_tokens: int) -> None:
    async with running_pair(tmp_path) as pair:
        attempt = make_attempt(PROMPT[:num_tokens], sampling=SAMPLING)
        sequence = await pair.redeem(attempt, pair.submit(attempt))
        tokens = [sequence.token_ids[-1], await second_token(pair, sequence)]
        assert tokens == fake_tokens(PROMPT[:num_tokens], SAMPLING, 2)
        sequence.lease.release()
        await pair.sink.first(Ended)
        assert pair.sink.kinds == ["Admitted", "FirstToken", "Ended"]


async def test_a_reader_that_leaves_is_followed_by_another(tmp_path: Path) -> None:
    async with running_pair(tmp_path) as pair:
        first = make_attempt(PROMPT, sampling=SAMPLING)
        ticket = pair.submit(first)

        async def no_room(num_tokens: int) -> BlockLease:
            raise TicketUnknown("the reader gave up")

        with pytest.raises(TicketUnknown):
            await pair.importer.redeem(ticket, no_room, IntakeBudget(1 << 20))
        await pair.sink.first(FirstToken)  # computing went on without a reader
        assert pair.app.worker.status().num_exported == 1
        second = make_attempt(PROMPT, sampling=SAMPLING, epoch=2)
        sequence = await pair.redeem(second, pair.submit(second))
        assert await second_token(pair, sequence) == fake_tokens(PROMPT, SAMPLING, 2)[1]
        sequence.lease.release()
        await pair.sink.number(Ended, 2)
        assert pair.app.worker.loop.num_steps == 4  # 51 tokens in chunks of 16, once


async def test_a_cancelled_ticket_is_refused(tmp_path: Path) -> None:
    async with running_pair(tmp_path) as pair:
        attempt = make_attempt(PROMPT, sampling=SAMPLING)
        ticket = pair.submit(attempt)
        pair.app.worker.cancel(RequestId("r1"), 1, "client left", pair.sink)
        with pytest.raises(TicketUnknown, match="client left"):
            await pair.redeem(attempt, ticket)


async def test_nothing_to_take_over_after_a_terminal_token(tmp_path: Path) -> None:
    async with running_pair(tmp_path) as pair:
        stop = fake_tokens(PROMPT, SAMPLING, 1)[0]
        sampling = SamplingParams(max_tokens=9, stop_token_ids=(stop,))
        attempt = make_attempt(PROMPT, sampling=sampling)
        with pytest.raises(FinishedAtPrefill):
            await pair.redeem(attempt, pair.submit(attempt))
        await pair.sink.first(Ended)
