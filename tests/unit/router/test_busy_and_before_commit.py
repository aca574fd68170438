"""Rows of docs/protocol.md sections 2 and 3 up to the decode worker's commit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdserve.errors import RetriesExhausted
from pdserve.types import FinishReason, Leg, Role
from support.router_bench import RouterBench
from support.scripted_worker import settle

# --- Busy -----------------------------------------------------------------------------------------


async def test_busy_prefill_cancels_decode_and_spends_no_retry() -> None:
    async with RouterBench(max_redispatches=0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        for _ in range(3):
            to_prefill = await prefill.take_submit(Leg.PREFILL)
            to_decode = await decode.take_submit(Leg.DECODE)
            await decode.admit(to_decode)
            await prefill.busy(to_prefill)
            await decode.take_cancel(to_decode)
            assert prefill.inbox == [], "not picked again before its next report"
            await prefill.report()
        to_prefill = await prefill.take_submit()
        assert to_prefill.attempt.epoch == 4
        await bench.finish(reader, prefill, decode, to_prefill)


async def test_busy_decode_cancels_prefill() -> None:
    async with RouterBench(max_redispatches=0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill = await prefill.take_submit()
        await prefill.admit(to_prefill)
        await decode.busy(await decode.take_submit())
        await prefill.take_cancel(to_prefill)
        await decode.report()
        await bench.finish(reader, prefill, decode, await prefill.take_submit())


async def test_busy_worker_is_passed_over_for_another() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair(1)
        other = await bench.join("P2", Role.PREFILL)
        await other.report(queued_tokens=8)  # so that P1 is the first choice
        reader = bench.start()
        await decode.admit(to_decode := await decode.take_submit())
        await prefill.busy(await prefill.take_submit())
        await decode.take_cancel(to_decode)
        await bench.finish(reader, other, decode, await other.take_submit())


async def test_a_request_that_met_busy_goes_before_those_that_wait() -> None:
    async with RouterBench(dispatch_window_ms=0.0) as bench:
        prefill, decode = await bench.join_pair()
        await prefill.report(queued_tokens=31)  # room for one more
        first = bench.start(max_tokens=1, request_id="first")
        submit = await prefill.take_submit()
        second = bench.start(max_tokens=1, request_id="second", priority=-5)
        await settle()
        await prefill.busy(submit)
        await prefill.report(queued_tokens=0)
        for reader in (first, second):
            submit = await prefill.take_submit()
            assert submit.attempt.request.request_id == reader.stream.request_id
            await prefill.admit(submit)
            await prefill.first_token(submit, 1, FinishReason.LENGTH)
        assert decode.inbox == []


# --- before commit --------------------------------------------------------------------------------


async def test_prefill_lost_before_the_first_token() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        _, to_decode = await bench.dispatched(prefill, decode)
        await prefill.die()
        await decode.take_cancel(to_decode)
        assert reader.num_ends == 0
        other = await bench.join("P2", Role.PREFILL)
        again = await other.take_submit()
        assert (again.attempt.epoch, again.attempt.forced_ids) == (2, ())
        await bench.finish(reader, other, decode, again)


async def test_prefill_failed_goes_to_another_prefill_worker() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        other = await bench.join("P2", Role.PREFILL)
        await other.report(queued_tokens=16)
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.fail(to_prefill, "engine_failure")
        await decode.take_cancel(to_decode)
        await bench.finish(reader, other, decode, await other.take_submit())
        assert prefill.inbox == []


async def test_prefill_lost_after_the_first_token_forces_it() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await prefill.die()
        await decode.take_cancel(to_decode)
        other = await bench.join("P2", Role.PREFILL)
        again = await other.take_submit()
        assert (again.attempt.epoch, again.attempt.forced_ids) == (2, (10,))
        assert again.ticket is not None
        assert again.ticket.num_tokens == 6
        assert again.ticket.ticket_id != to_prefill.ticket.ticket_id  # type: ignore[union-attr]
        await bench.finish(reader, other, decode, again)


async def test_first_token_delivered_and_one_to_go_needs_no_decode_worker() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=2)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await prefill.fail(to_prefill, "ticket_expired")
        await decode.take_cancel(to_decode)
        again = await prefill.take_submit()
        assert (again.attempt.forced_ids, again.ticket) == ((10,), None)
        await prefill.admit(again)
        await prefill.first_token(again, 11, FinishReason.LENGTH)
        assert reader.token_ids == [10, 11]


@pytest.mark.parametrize("computed", [False, True], ids=["computing", "computed"])
async def test_decode_lost_before_commit_redeems_the_kv_elsewhere(computed: bool) -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, _ = await bench.dispatched(prefill, decode)
        if computed:
            await prefill.first_token(to_prefill, 10)
        await decode.die()
        assert prefill.inbox == [], "the prefill leg goes on"
        assert bench.router.status().num_tickets == 1
        other = await bench.join("D2", Role.DECODE)
        again = await prefill.take_submit(Leg.PREFILL)
        assert again.attempt.epoch == 2
        assert again.attempt.forced_ids == (), "the same context, whatever was delivered"
        assert again.ticket.ticket_id == to_prefill.ticket.ticket_id  # type: ignore[union-attr]
        assert again.ticket.epoch == 2  # type: ignore[union-attr]
        await prefill.end(to_prefill)
        await bench.finish(reader, prefill, other, again)


async def test_first_token_that_comes_while_a_redeem_waits_is_delivered() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, _ = await bench.dispatched(prefill, decode)
        await decode.die()
        await prefill.first_token(to_prefill, 10)
        assert reader.token_ids == [10]
        other = await bench.join("D2", Role.DECODE)
        again = await prefill.take_submit()
        await prefill.end(to_prefill)
        await bench.finish(reader, prefill, other, again)


async def test_terminal_first_token_while_a_redeem_waits_ends_the_request() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, _ = await bench.dispatched(prefill, decode)
        await decode.die()
        await prefill.first_token(to_prefill, 256, FinishReason.STOP)
        assert reader.finish is FinishReason.STOP
        assert prefill.inbox == []


async def test_kv_failed_redeems_and_prefers_another_decode_worker() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        other = await bench.join("D2", Role.DECODE)
        await other.report(free_blocks=40)  # so that D1 is the first choice
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.kv_failed(to_decode, "frame_corrupt")
        again = await prefill.take_submit()
        assert again.attempt.epoch == 2
        await prefill.end(to_prefill)
        await bench.finish(reader, prefill, other, again)
        assert decode.inbox == []


async def test_decode_leg_failed_before_commit_redeems() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.fail(to_decode, "engine_failure")
        again = await prefill.take_submit()
        assert again.ticket.ticket_id == to_prefill.ticket.ticket_id  # type: ignore[union-attr]
        await prefill.end(to_prefill)
        await bench.finish(reader, prefill, decode, again)


async def test_busy_on_a_redeem_from_prefill_means_a_new_attempt() -> None:
    async with RouterBench(max_redispatches=1) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.kv_failed(to_decode)
        again = await prefill.take_submit()
        to_decode = await decode.take_submit()
        await decode.admit(to_decode)
        await prefill.busy(again)
        await decode.take_cancel(to_decode)
        await prefill.end(to_prefill)
        fresh = await prefill.take_submit()
        assert (fresh.attempt.epoch, fresh.attempt.forced_ids) == (3, (10,))
        assert fresh.ticket.ticket_id != again.ticket.ticket_id  # type: ignore[union-attr]
        await bench.finish(reader, prefill, decode, fresh)


async def test_busy_on_a_redeem_from_decode_cancels_prefill_and_means_a_new_attempt() -> None:
    async with RouterBench(max_redispatches=1) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.kv_failed(to_decode)
        again = await prefill.take_submit()
        await prefill.admit(again)
        await prefill.end(to_prefill)
        await decode.busy(await decode.take_submit())
        await prefill.take_cancel(again)
        await decode.report()
        fresh = await prefill.take_submit()
        assert (fresh.attempt.epoch, fresh.attempt.forced_ids) == (3, (10,))
        await bench.finish(reader, prefill, decode, fresh)


async def test_prefill_failed_while_its_redeem_waits_means_a_new_attempt() -> None:
    async with RouterBench(max_redispatches=1) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, _ = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.die()
        await prefill.fail(to_prefill, "ticket_expired")
        other = await bench.join("D2", Role.DECODE)
        fresh = await prefill.take_submit()
        assert (fresh.attempt.epoch, fresh.attempt.forced_ids) == (2, (10,))
        await bench.finish(reader, prefill, other, fresh)


async def test_ticket_ended_while_its_redeem_waits_means_a_new_attempt() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, _ = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await prefill.end(to_prefill)  # acknowledged, but the commit never reached the router
        await decode.die()
        other = await bench.join("D2", Role.DECODE)
        fresh = await prefill.take_submit()
        assert fresh.attempt.forced_ids == (10,)
        await bench.finish(reader, prefill, other, fresh)


async def test_both_failed_means_a_new_attempt_with_the_delivered_tokens() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.report(free_blocks=0)  # no room: the redeem has to wait
        await decode.kv_failed(to_decode)
        await prefill.die()
        other = await bench.join("P2", Role.PREFILL)
        await decode.report(free_blocks=64)
        fresh = await other.take_submit()
        assert fresh.attempt.forced_ids == (10,)
        await bench.finish(reader, other, decode, fresh)


async def test_prefill_leg_that_ends_without_a_token_is_a_failure() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.end(to_prefill)
        await decode.take_cancel(to_decode)
        await bench.finish(reader, prefill, decode, await prefill.take_submit())


async def test_decode_leg_that_ended_before_a_first_token_that_is_not_the_last() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.end(to_decode)
        await prefill.first_token(to_prefill, 10)
        again = await prefill.take_submit()
        assert again.ticket.ticket_id == to_prefill.ticket.ticket_id  # type: ignore[union-attr]
        await prefill.end(to_prefill)
        await bench.finish(reader, prefill, decode, again)


async def test_a_new_attempt_remembers_nothing_of_the_one_before() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.end(to_decode)  # as if the first token were the last
        await prefill.fail(to_prefill, "engine_failure")
        await decode.take_cancel(to_decode)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        assert prefill.inbox == [], "this attempt's decode leg has not ended"
        await prefill.fail(to_prefill, "engine_failure")
        await decode.take_cancel(to_decode)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.end(to_prefill)  # without a token of this attempt: a failure, the third
        await decode.take_cancel(to_decode)
        assert isinstance(reader.error, RetriesExhausted)


async def test_a_redeem_takes_no_new_room_at_its_prefill_worker() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        await prefill.report(free_blocks=4)
        bench.start([1] * 14, max_tokens=4, request_id="redeemed")  # all 4 blocks
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.report(free_blocks=2)
        await decode.kv_failed(to_decode)
        again, held = await prefill.take_submit(), prefill.status
        await decode.take_submit()
        prefill.status = replace(held, last_submit_seq=again.submit_seq - 1)
        other = bench.start([1] * 8, max_tokens=1, request_id="other")
        assert (await prefill.take_submit()).attempt.request.request_id == "other"
        for reader in (other, bench.readers[0]):
            reader.stream.cancel("enough")
        await prefill.end(to_prefill)
