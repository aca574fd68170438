"""The router's core on a manual clock, with scripted workers and readers; ends by asserting peace.

async with RouterBench() as bench:
    prefill, decode = await bench.join_pair()
    reader = bench.start([1, 2, 3], max_tokens=4)
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Self

from pdserve.clock import ManualClock
from pdserve.errors import PdserveError
from pdserve.messages import Submit, Welcome
from pdserve.types import (
    FinishReason,
    Leg,
    ModelInfo,
    Request,
    RequestId,
    Role,
    SamplingParams,
)
from router.config import RouterConfig
from router.router import Router
from router.token_stream import TokenStream
from support.scripted_worker import FINGERPRINT, ScriptedWorker, make_hello, settle
from support.tasks import none_left

MODEL = ModelInfo("test", FINGERPRINT, vocab_size=320, max_model_len=256, eos_token_ids=(256,))


@dataclass
class Reader:
    """A client that reads as fast as it can."""

    stream: TokenStream
    token_ids: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    error: PdserveError | None = None
    num_ends: int = 0

    async def read(self) -> None:
        try:
            async for token in self.stream:
                self.token_ids.append(token.token_id)
                self.indices.append(token.index)
                self.num_ends += token.finish_reason is not None
                self.finish = token.finish_reason
        except PdserveError as error:
            self.error = error
            self.num_ends += 1


class RouterBench:
    def __init__(self, **config: object) -> None:
        self.clock = ManualClock(1000.0)
        self.config = RouterConfig(**config)  # type: ignore[arg-type]
        self.router = Router(self.config, MODEL, self.clock)
        self.workers: list[ScriptedWorker] = []
        self.readers: list[Reader] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is None:
            await self._assert_peace()
        for worker in self.workers:
            await worker.close()
        await self.router.close()
        for task in self._tasks:
            if kind is not None:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=kind is not None)
        if kind is None:
            await none_left(())

    async def _assert_peace(self) -> None:
        """No request, no booking, no leg that nobody stopped, one end for each reader."""
        await settle()
        status = self.router.status()
        assert (status.num_in_flight, status.queue_len, status.num_tickets) == (0, 0, 0)
        for worker in self.workers:
            await worker.end_all()
        assert [entry.num_legs for entry in self.router.status().workers if entry.num_legs] == []
        for reader in self.readers:
            assert reader.num_ends == 1
            assert reader.indices == list(range(len(reader.indices)))

    async def connect(self, worker_id: str, role: Role, **hello: object) -> ScriptedWorker:
        """A worker that has said Hello, welcome or not."""
        worker = ScriptedWorker.connect(make_hello(worker_id, role, **hello))
        self.workers.append(worker)
        self._tasks.append(asyncio.create_task(self.router.serve_worker(worker.far_end)))
        await worker.say(worker.hello)
        return worker

    async def join(self, worker_id: str, role: Role, **hello: object) -> ScriptedWorker:
        worker = await self.connect(worker_id, role, **hello)
        worker.take(Welcome)
        return worker

    async def join_pair(self, number: int = 1) -> tuple[ScriptedWorker, ScriptedWorker]:
        prefill = await self.join(f"P{number}", Role.PREFILL)
        return prefill, await self.join(f"D{number}", Role.DECODE)

    def start(
        self,
        prompt_ids: list[int] | None = None,
        *,
        max_tokens: int = 4,
        request_id: str = "r",
        priority: int = 0,
        timeout_s: float | None = None,
        tokenize_s: float = 0.0,
    ) -> Reader:
        request = Request(
            RequestId(request_id),
            tuple(prompt_ids or [1, 2, 3, 4, 5]),
            SamplingParams(max_tokens=max_tokens),
            priority,
            None if timeout_s is None else self.clock.now() + timeout_s,
        )
        reader = Reader(self.router.start(request, tokenize_s=tokenize_s))
        self.readers.append(reader)
        self._tasks.append(asyncio.create_task(reader.read()))
        return reader

    async def advance(self, by_s: float) -> None:
        self.clock.advance(by_s)
        await settle()

    async def dispatched(
        self, prefill: ScriptedWorker, decode: ScriptedWorker
    ) -> tuple[Submit, Submit]:
        """Both Submits of one attempt, admitted."""
        to_prefill = await prefill.take_submit(Leg.PREFILL)
        to_decode = await decode.take_submit(Leg.DECODE)
        assert to_prefill.attempt == to_decode.attempt
        assert to_prefill.ticket == to_decode.ticket
        await prefill.admit(to_prefill)
        await decode.admit(to_decode)
        return to_prefill, to_decode

    async def committed(
        self, prefill: ScriptedWorker, decode: ScriptedWorker, first_id: int = 10
    ) -> tuple[Submit, Submit]:
        """One attempt up to the decode worker's commit; the prefill leg has ended."""
        to_prefill, to_decode = await self.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, first_id)
        await decode.commit(to_decode)
        await prefill.end(to_prefill)
        return to_prefill, to_decode

    async def finish(
        self, reader: Reader, prefill: ScriptedWorker, decode: ScriptedWorker, submit: Submit
    ) -> None:
        """From a prefill Submit to the end of four tokens, 10, 11, 12, 13 at their indices."""
        to_decode = await decode.take_submit(Leg.DECODE)
        await prefill.admit(submit)
        await decode.admit(to_decode)
        first = submit.attempt.first_index
        await prefill.first_token(submit, 10 + first)
        await decode.commit(to_decode)
        await prefill.end(submit)
        rest = [10 + index for index in range(first, 4)]
        await decode.tokens(to_decode, first, rest, FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]
