"""The prefill leg's way from Submit to Ended (docs/protocol.md 3), reader played by the test."""

from __future__ import annotations

from dataclasses import replace

from engine.fake_model import EOS_TOKEN_ID
from engine.fake_runner import fake_tokens
from kvtransfer.messages import FirstTokenInfo
from pdserve.messages import (
    Admitted,
    Ended,
    FirstToken,
)
from pdserve.types import (
    FinishReason,
    SamplingParams,
)
from support.prefill_bench import MANY, NUM_BLOCKS, Bench, prompt, settle


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


async def test_priority_goes_before_arrival(bench: Bench) -> None:
    bench.runner.gate.clear()
    bench.submit(8, ticket=None, request_id="r0")
    await bench.runner.entered.wait()
    bench.submit(8, ticket=None, request_id="late", priority=5)
    bench.submit(8, ticket=None, request_id="urgent", priority=-1)
    bench.runner.gate.set()
    first_tokens = await bench.sink.number(FirstToken, 3)
    assert [event.token.request_id for event in first_tokens] == ["r0", "urgent", "late"]


async def test_many_prompts_all_end_with_their_own_tokens(bench: Bench) -> None:
    lengths = [1, 3, 4, 5, 7, 8, 9, 12]
    for length in lengths:
        bench.submit(length, ticket=None, request_id=f"r{length}")
    await bench.sink.number(Ended, len(bench.sink.of(Admitted)))
    for event in bench.sink.of(FirstToken):
        length = int(event.token.request_id[1:])
        assert event.token.token_id == fake_tokens(prompt(length), MANY)[0]
    assert len(bench.sink.of(FirstToken)) == len(bench.sink.of(Admitted)) >= 5
