"""Failures after the commit, how often a request is tried again, and events out of place."""

from __future__ import annotations

import pytest

from pdserve.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, RetriesExhausted
from pdserve.messages import Ended, Submit
from pdserve.types import FinishReason, Leg, Role
from support.router_bench import RouterBench

# --- after commit ---------------------------------------------------------------------------------


async def test_prefill_lost_after_commit_changes_nothing() -> None:
    async with RouterBench(max_redispatches=0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.commit(to_decode)
        await prefill.die()
        await decode.tokens(to_decode, 0, [10, 11, 12, 13], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]


async def test_prefill_failed_after_commit_changes_nothing() -> None:
    async with RouterBench(max_redispatches=0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.commit(to_decode)
        await prefill.fail(to_prefill, "deadline_exceeded")
        await decode.tokens(to_decode, 0, [10, 11, 12, 13], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]


@pytest.mark.parametrize("how", ["lost", "failed", "ended", "gap"])
async def test_decode_gone_after_commit_forces_every_delivered_token(how: str) -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        _, to_decode = await bench.committed(prefill, decode)
        await decode.tokens(to_decode, 0, [10, 11])
        match how:
            case "lost":
                await decode.die()
            case "failed":
                await decode.fail(to_decode, "engine_failure")
            case "ended":
                await decode.end(to_decode)
            case "gap":
                await decode.tokens(to_decode, 3, [13])
                await decode.take_cancel(to_decode)  # it knows of no fault and would go on
                await decode.end(to_decode)
        other = await bench.join("D2", Role.DECODE) if how == "lost" else decode
        again = await prefill.take_submit()
        assert (again.attempt.epoch, again.attempt.forced_ids) == (2, (10, 11))
        assert again.ticket.num_tokens == 7  # type: ignore[union-attr]
        await bench.finish(reader, prefill, other, again)


async def test_decode_lost_while_the_prefill_leg_lingers_cancels_that() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await decode.commit(to_decode)
        await decode.die()
        await prefill.take_cancel(to_prefill)
        other = await bench.join("D2", Role.DECODE)
        await bench.finish(reader, prefill, other, await prefill.take_submit())


async def test_already_committed_gives_the_request_back_to_the_earlier_attempt() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, first_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 10)
        await prefill.fail(to_prefill, "engine_failure")
        again = await prefill.take_submit()
        decode.inbox.clear()  # a worker that had committed before the Cancel came
        to_decode = next(leg.submit for leg in decode.legs if leg.submit.attempt.epoch == 2)
        await prefill.admit(again)
        await decode.already_committed(to_decode, committed_epoch=1)
        await prefill.take_cancel(again)
        await decode.tokens(first_decode, 1, [11, 12, 13], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]


# --- limits of trying again -----------------------------------------------------------------------


async def test_no_more_than_max_redispatches() -> None:
    async with RouterBench(max_redispatches=2) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        for _ in range(3):
            to_prefill, to_decode = await bench.dispatched(prefill, decode)
            await prefill.fail(to_prefill, "engine_failure", "out of luck")
            await decode.take_cancel(to_decode)
        assert isinstance(reader.error, RetriesExhausted)
        assert "out of luck" in str(reader.error)
        assert reader.stream.timing.num_dispatches == 3


async def test_not_tried_again_after_two_workers_died_with_it() -> None:
    async with RouterBench(max_redispatches=10) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        _, to_decode = await bench.dispatched(prefill, decode)
        await prefill.die()
        await decode.take_cancel(to_decode)
        prefill = await bench.join("P2", Role.PREFILL)
        to_prefill, _ = await bench.dispatched(prefill, decode)
        await prefill.die()
        assert isinstance(reader.error, RetriesExhausted)
        assert "2 workers died" in str(reader.error)


async def test_both_workers_dead_at_once_is_not_tried_again_either() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        await bench.dispatched(prefill, decode)
        await decode.die()
        await prefill.die()
        assert isinstance(reader.error, RetriesExhausted)


async def test_workers_that_left_by_their_own_will_did_not_die() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        for number in (2, 3):
            await bench.dispatched(prefill, decode)
            await prefill.goodbye()
            prefill = await bench.join(f"P{number}", Role.PREFILL)
            decode.inbox = [message for message in decode.inbox if isinstance(message, Submit)]
        await bench.finish(reader, prefill, decode, await prefill.take_submit())


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("invalid_request", InvalidRequest),
        ("context_length_exceeded", ContextTooLong),
        ("deadline_exceeded", DeadlineExceeded),
    ],
)
async def test_a_fault_of_the_request_itself_is_not_tried_again(
    code: str, error: type[Exception]
) -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.fail(to_prefill, code, "prompt: no good")
        assert type(reader.error) is error
        assert "prompt: no good" in str(reader.error)
        await decode.take_cancel(to_decode)


# --- stale and strange events ---------------------------------------------------------------------


async def test_events_of_an_earlier_epoch_change_nothing() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        old_prefill, old_decode = await bench.dispatched(prefill, decode)
        await prefill.fail(old_prefill, "engine_failure")
        await decode.take_cancel(old_decode)
        again, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(old_prefill, 99)
        await decode.commit(old_decode)
        await decode.tokens(old_decode, 0, [98, 97])
        await decode.kv_failed(old_decode)
        await prefill.fail(old_prefill, "engine_failure")
        assert reader.token_ids == []
        await prefill.first_token(again, 10)
        await decode.commit(to_decode)
        await prefill.end(again)
        await decode.tokens(to_decode, 1, [11, 12, 13], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]


async def test_tokens_before_the_commit_are_not_believed() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.tokens(to_decode, 0, [10, 11])
        assert reader.token_ids == []
        await decode.commit(to_decode)
        await prefill.first_token(to_prefill, 10)
        await prefill.end(to_prefill)
        await decode.tokens(to_decode, 1, [11, 12, 13], FinishReason.LENGTH)


async def test_events_of_unknown_requests_change_nothing() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=1)
        submit = await prefill.take_submit()
        await prefill.admit(submit)
        await prefill.first_token(submit, 10, FinishReason.LENGTH)
        await prefill.fail(submit, "engine_failure")
        await decode.report(Ended(submit.attempt.request.request_id, 7, Leg.DECODE))
        assert reader.error is None
