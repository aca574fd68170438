"""The queue at work: window, order, patience, overload, barred pairs, shutting down."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from pdserve.errors import InvalidRequest, NoWorkers, Overloaded, ShuttingDown
from pdserve.messages import Submit
from pdserve.types import FinishReason, Leg, PrefillTiming, Role
from support.router_bench import Reader, RouterBench
from support.scripted_worker import LIMITS, ScriptedWorker, settle


async def finish_one_token(worker: ScriptedWorker, submit: Submit, compute_s: float = 0.0) -> None:
    timing = PrefillTiming(compute_s=compute_s)
    await worker.admit(submit)
    await worker.first_token(submit, 10, FinishReason.LENGTH, timing)
    await worker.end(submit)


def cancel_all(readers: list[Reader]) -> None:
    for reader in readers:
        reader.stream.cancel("enough")


async def test_the_window_holds_back_what_a_prefill_worker_cannot_start_soon() -> None:
    async with RouterBench(dispatch_window_ms=0.0) as bench:
        prefill = await bench.join("P1", Role.PREFILL)  # chunk 16, window 32
        for name in "abc":
            bench.start([1] * 20, max_tokens=1, request_id=name)
        first, _ = await prefill.take_submit(), await prefill.take_submit()
        assert prefill.inbox == [], "40 tokens are ahead"
        assert bench.router.status().queue_len == 1
        await prefill.report(queued_tokens=32)
        await prefill.admit(first)
        assert prefill.inbox == []
        await prefill.report(queued_tokens=31)
        await prefill.take_submit()
        cancel_all(bench.readers)


async def test_an_idle_worker_takes_a_prompt_of_any_length() -> None:
    async with RouterBench() as bench:
        prefill = await bench.join("P1", Role.PREFILL)
        bench.start([1] * 200, max_tokens=1)
        await finish_one_token(prefill, await prefill.take_submit())


async def test_dispatch_follows_priority_deadline_arrival() -> None:
    async with RouterBench() as bench:
        bench.start(max_tokens=1, request_id="late")
        bench.start(max_tokens=1, request_id="due", timeout_s=50.0)
        bench.start(max_tokens=1, request_id="urgent", priority=-1)
        bench.start(max_tokens=1, request_id="patient", priority=1)
        bench.start(max_tokens=1, request_id="later")
        prefill = await bench.join("P1", Role.PREFILL)
        order = []
        for _ in range(5):
            submit = await prefill.take_submit()
            order.append(submit.attempt.request.request_id)
            await finish_one_token(prefill, submit)
        assert order == ["urgent", "due", "late", "later", "patient"]


async def test_a_small_request_does_not_overtake_a_large_one_that_waits_for_blocks() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        await decode.report(free_blocks=4)
        bench.start([1] * 30, request_id="large")
        bench.start([1] * 3, request_id="small")
        await settle()
        assert (prefill.inbox, decode.inbox) == ([], [])
        await decode.report(free_blocks=12)
        submit = await decode.take_submit()
        assert submit.attempt.request.request_id == "large"
        cancel_all(bench.readers)


async def test_a_full_queue_is_told_and_when_to_come_again() -> None:
    async with RouterBench(max_queue=2) as bench:
        bench.start(request_id="a")
        bench.start(request_id="b")
        with pytest.raises(Overloaded, match="2 requests") as caught:
            bench.start(request_id="c")
        assert caught.value.retry_after_s == 1.0
        cancel_all(bench.readers)
        bench.start(request_id="d").stream.cancel("enough")


async def test_a_deadline_that_the_queue_cannot_meet_is_refused() -> None:
    async with RouterBench() as bench:
        prefill = await bench.join("P1", Role.PREFILL)
        bench.start([1] * 100, max_tokens=1)
        await finish_one_token(prefill, await prefill.take_submit(), compute_s=1.0)  # 100 tokens/s
        bench.start([1] * 200, max_tokens=1, request_id="long")
        await settle()
        with pytest.raises(Overloaded, match=r"about 2\.1 s of work are ahead"):
            bench.start([1] * 10, max_tokens=1, request_id="short", timeout_s=2.0)
        bench.start([1] * 10, max_tokens=1, request_id="short", timeout_s=2.2)
        cancel_all(bench.readers[1:])


# --- pools without workers --------------------------------------------------------------------


@pytest.mark.parametrize("present", [Role.PREFILL, Role.DECODE])
async def test_a_pool_without_workers_is_waited_for_and_then_given_up(present: Role) -> None:
    async with RouterBench(worker_patience_s=60.0, worker_loss_s=1000.0) as bench:
        await bench.join("W", present)
        reader = bench.start()
        await settle()
        await bench.advance(59.9)
        assert reader.error is None
        await bench.advance(0.1)
        assert isinstance(reader.error, NoWorkers)
        missing = "decode" if present is Role.PREFILL else "prefill"
        assert f"no {missing} worker for 60 s" in str(reader.error)


async def test_a_worker_that_comes_ends_the_wait() -> None:
    async with RouterBench(worker_patience_s=60.0, worker_loss_s=1000.0) as bench:
        bench.start(max_tokens=1, request_id="first")
        second = bench.start(max_tokens=1, request_id="second")
        await bench.advance(59.0)
        prefill = await bench.join("P1", Role.PREFILL)
        await prefill.report(queued_tokens=32)
        await bench.advance(5.0)
        assert second.error is None
        await prefill.report(queued_tokens=0)
        for _ in range(2):
            await finish_one_token(prefill, await prefill.take_submit())


async def test_patience_begins_anew_when_a_request_must_be_tried_again() -> None:
    async with RouterBench(worker_patience_s=60.0, worker_loss_s=1000.0) as bench:
        await bench.advance(100.0)
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        await bench.dispatched(prefill, decode)
        await bench.advance(100.0)
        await prefill.die()
        await bench.advance(59.0)
        assert reader.error is None
        await bench.advance(1.0)
        assert isinstance(reader.error, NoWorkers)


async def test_one_token_does_not_wait_for_decode_workers() -> None:
    async with RouterBench() as bench:
        prefill = await bench.join("P1", Role.PREFILL)
        waits = bench.start(request_id="needs both")
        goes = bench.start(request_id="needs one", max_tokens=1)
        await finish_one_token(prefill, await prefill.take_submit())
        assert goes.token_ids == [10]
        waits.stream.cancel("enough")


async def test_the_context_is_that_of_the_workers() -> None:
    async with RouterBench() as bench:
        assert bench.router.model.max_model_len == 256
        small = LIMITS.__class__(
            max_model_len=40, total_blocks=64, chunk_tokens=16, max_running=8, vocab_size=320
        )
        await bench.join("D1", Role.DECODE, limits=small)
        assert bench.router.model.max_model_len == 40
        with pytest.raises(InvalidRequest, match="context of 40 tokens"):
            bench.start([1] * 20, max_tokens=21)
        few_blocks = LIMITS.__class__(
            max_model_len=256, total_blocks=8, chunk_tokens=16, max_running=8, vocab_size=320
        )
        prefill = await bench.join("P1", Role.PREFILL, limits=few_blocks)
        assert bench.router.model.max_model_len == 32, "8 blocks of 4 tokens"
        await bench.join("P2", Role.PREFILL)
        assert bench.router.model.max_model_len == 40, "one that can is enough"
        assert prefill.inbox == []


# --- barred pairs -----------------------------------------------------------------------------


async def test_a_pair_that_cannot_move_kv_rests_and_rests_longer() -> None:
    async with RouterBench(max_redispatches=5, worker_loss_s=1000.0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        for pause_s in (1.0, 2.0, 4.0):
            await decode.kv_failed(to_decode, "peer_unreachable")
            assert (prefill.inbox, decode.inbox) == ([], [])
            await bench.advance(pause_s - 0.1)
            assert (prefill.inbox, decode.inbox) == ([], [])
            await bench.advance(0.1)
            old, (to_prefill, to_decode) = to_prefill, await bench.dispatched(prefill, decode)
            await prefill.end(old)
        await prefill.first_token(to_prefill, 10)
        await decode.commit(to_decode)
        await decode.fail(to_decode, "engine_failure")
        await prefill.take_cancel(to_prefill)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.kv_failed(to_decode, "peer_silent")  # the commit cleared the record
        await bench.advance(1.0)
        await prefill.end(to_prefill)
        await bench.dispatched(prefill, decode)
        reader.stream.cancel("enough")


async def test_a_restarted_worker_is_not_barred_for_what_the_old_one_did() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.kv_failed(to_decode, "peer_unreachable")
        assert prefill.inbox == []
        new = await bench.join("D1", Role.DECODE, incarnation="b")
        await bench.dispatched(prefill, new)
        await prefill.end(to_prefill)
        reader.stream.cancel("enough")


async def test_other_failures_bar_nobody() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.kv_failed(to_decode, "frame_corrupt")
        await prefill.end(to_prefill)
        await bench.dispatched(prefill, decode)
        reader.stream.cancel("enough")


async def test_kv_that_nobody_can_fetch_is_computed_again_elsewhere() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        other = await bench.join("P2", Role.PREFILL)
        await other.report(queued_tokens=16)  # so that P1 is the first choice
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.kv_failed(to_decode, "peer_unreachable")
        await prefill.take_cancel(to_prefill)
        fresh, to_decode = await bench.dispatched(other, decode)
        assert (fresh.attempt.epoch, fresh.attempt.forced_ids) == (2, (10,))
        await other.first_token(fresh, 11)
        await decode.commit(to_decode)
        await other.end(fresh)
        await decode.tokens(to_decode, 1, [11, 12, 13], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]


async def test_a_barred_pair_does_not_hold_up_those_behind() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        bench.start(request_id="barred")
        _, to_decode = await bench.dispatched(prefill, decode)
        await decode.kv_failed(to_decode, "peer_unreachable")
        one_token = bench.start(request_id="one", max_tokens=1)
        await finish_one_token(prefill, await prefill.take_submit())
        assert one_token.token_ids == [10]
        cancel_all(bench.readers[:1])


@pytest.mark.parametrize("num_looks", range(1, 6))
async def test_a_bar_that_ends_between_two_looks_at_the_clock_gives_no_kv_up(
    num_looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on a millisecond a look; the bar ends before the first of a dispatch's looks,
    after the last, and between any two."""
    async with RouterBench(pair_bar_s=1.0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.kv_failed(to_decode, "peer_unreachable")
        begin_s = bench.clock.now() + 1.0 - 0.001 * num_looks - 0.0005
        looks = itertools.count(1)
        with monkeypatch.context() as patch:
            patch.setattr(bench.clock, "now", lambda: begin_s + 0.001 * next(looks))
            await decode.report()
            await settle()
        assert num_looks > 1 or prefill.inbox, "the bar was over"
        assert num_looks < 5 or not prefill.inbox, "the bar was not over"
        bench.clock.advance(1.5)
        await settle()
        again = await prefill.take_submit()
        assert again.ticket is not None and to_prefill.ticket is not None
        assert (again.ticket.ticket_id, again.attempt.epoch) == (to_prefill.ticket.ticket_id, 2)
        reader.stream.cancel("enough")


# --- shutting down ----------------------------------------------------------------------------


async def test_a_drained_router_lets_streams_finish() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        _, to_decode = await bench.committed(prefill, decode)
        draining = asyncio.create_task(bench.router.drain(30.0))
        await settle()
        assert not bench.router.status().can_serve()
        with pytest.raises(ShuttingDown):
            bench.start(request_id="late")
        assert not draining.done()
        await decode.tokens(to_decode, 1, [11, 12, 13], FinishReason.LENGTH)
        await draining
        assert reader.token_ids == [10, 11, 12, 13]


async def test_a_drained_router_cancels_what_is_left_after_the_grace() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        running = bench.start(request_id="running")
        _, to_decode = await bench.committed(prefill, decode)
        await decode.report(free_blocks=0)
        queued = bench.start(request_id="queued")
        draining = asyncio.create_task(bench.router.drain(5.0))
        await settle()
        await bench.advance(4.9)
        assert not draining.done()
        await bench.advance(0.1)
        await draining
        await decode.take_cancel(to_decode)
        for reader in (running, queued):
            assert isinstance(reader.error, ShuttingDown)


async def test_a_router_that_closes_leaves_nothing_running() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(timeout_s=100.0)
        await bench.dispatched(prefill, decode)
        await bench.router.close()
        await settle()
        assert isinstance(reader.error, ShuttingDown)
        assert prefill.refused is not None
        assert decode.refused is not None
        assert bench.router.status().workers == ()


async def test_colocated_workers_get_prompts_within_the_window_too() -> None:
    async with RouterBench(dispatch_window_ms=0.0, mode="colocated") as bench:
        decode = await bench.join("D1", Role.DECODE)
        for name in "abc":
            bench.start([1] * 20, request_id=name)
        for _ in range(2):
            await decode.take_submit(Leg.COLOCATED)
        assert decode.inbox == []
        cancel_all(bench.readers)
