"""One prefill worker on the fake engine, its reader and its router played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.fake_runner import FakeRunner
from engine.step import SampledToken, StepRow
from kvtransfer.config import TransferConfig
from pdserve.clock import ManualClock
from pdserve.messages import (
    PROTOCOL_VERSION,
    FirstToken,
    Hello,
    Submit,
)
from pdserve.prepared import PreparedModel
from pdserve.types import (
    Leg,
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


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


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
