"""Every row of docs/protocol.md sections 2 and 3 in which something goes wrong."""

from __future__ import annotations

import pytest

from pdserve.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RequestCancelled,
    RetriesExhausted,
)
from pdserve.messages import Ended, Submit
from pdserve.types import FinishReason, Leg, Role
from support.router_bench import Reader, RouterBench
from support.scripted_worker import ScriptedWorker, settle


async def finish(
    reader: Reader, prefill: ScriptedWorker, decode: ScriptedWorker, to_prefill: Submit
) -> None:
    """From two Submits to the end, with tokens 10, 11, 12, 13 at their indices."""
    to_decode = await decode.take_submit(Leg.DECODE)
    await prefill.admit(to_prefill)
    await decode.admit(to_decode)
    first = to_prefill.attempt.first_index
    await prefill.first_token(to_prefill, 10 + first)
    await decode.commit(to_decode)
    await prefill.end(to_prefill)
    rest = [10 + index for index in range(first, 4)]
    await decode.tokens(to_decode, first, rest, FinishReason.LENGTH)
    assert reader.token_ids == [10, 11, 12, 13]


# --- Busy -------------------------------------------------------------------------------------


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
        await finish(reader, prefill, decode, to_prefill)


async def test_busy_decode_cancels_prefill() -> None:
    async with RouterBench(max_redispatches=0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill = await prefill.take_submit()
        await prefill.admit(to_prefill)
        await decode.busy(await decode.take_submit())
        await prefill.take_cancel(to_prefill)
        await decode.report()
        await finish(reader, prefill, decode, await prefill.take_submit())


async def test_busy_worker_is_passed_over_for_another() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair(1)
        other = await bench.join("P2", Role.PREFILL)
        await other.report(queued_tokens=8)  # so that P1 is the first choice
        reader = bench.start()
        await decode.admit(to_decode := await decode.take_submit())
        await prefill.busy(await prefill.take_submit())
        await decode.take_cancel(to_decode)
        await finish(reader, other, decode, await other.take_submit())


async def test_a_request_that_met_busy_goes_before_those_that_wait() -> None:
    async with RouterBench() as bench:
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


# --- before commit ----------------------------------------------------------------------------


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
        await finish(reader, other, decode, again)


async def test_prefill_failed_goes_to_another_prefill_worker() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        other = await bench.join("P2", Role.PREFILL)
        await other.report(queued_tokens=16)
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.fail(to_prefill, "engine_failure")
        await decode.take_cancel(to_decode)
        await finish(reader, other, decode, await other.take_submit())
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
        await finish(reader, other, decode, again)


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
        await finish(reader, prefill, other, again)


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
        await finish(reader, prefill, other, again)


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
        await finish(reader, prefill, other, again)
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
        await finish(reader, prefill, decode, again)


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
        await finish(reader, prefill, decode, fresh)


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
        await finish(reader, prefill, other, fresh)


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
        await finish(reader, prefill, other, fresh)


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
        await finish(reader, other, decode, fresh)


async def test_prefill_leg_that_ends_without_a_token_is_a_failure() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.end(to_prefill)
        await decode.take_cancel(to_decode)
        await finish(reader, prefill, decode, await prefill.take_submit())


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
        await finish(reader, prefill, decode, again)


# --- after commit -----------------------------------------------------------------------------


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
                await decode.end(to_decode)
        other = await bench.join("D2", Role.DECODE) if how == "lost" else decode
        again = await prefill.take_submit()
        assert (again.attempt.epoch, again.attempt.forced_ids) == (2, (10, 11))
        assert again.ticket.num_tokens == 7  # type: ignore[union-attr]
        await finish(reader, prefill, other, again)


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
        await finish(reader, prefill, other, await prefill.take_submit())


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


# --- limits of trying again -------------------------------------------------------------------


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
        await finish(reader, prefill, decode, await prefill.take_submit())


@pytest.mark.parametrize(
    ("code", "error"), [("invalid_request", InvalidRequest), ("deadline_exceeded", DeadlineExceeded)]
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


# --- stale and strange events -----------------------------------------------------------------


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


# --- cancel and deadline in each state --------------------------------------------------------

STATES = ["queued", "asked", "dispatched", "prefilled", "redeem waits", "committed", "running"]


async def brought_to(
    state: str, bench: RouterBench, prefill: ScriptedWorker, decode: ScriptedWorker
) -> list[tuple[ScriptedWorker, Submit]]:
    """Legs open in that state."""
    if state == "queued":
        return []
    if state == "asked":
        return [(prefill, await prefill.take_submit()), (decode, await decode.take_submit())]
    to_prefill, to_decode = await bench.dispatched(prefill, decode)
    legs = [(prefill, to_prefill), (decode, to_decode)]
    if state != "dispatched":
        await prefill.first_token(to_prefill, 10)
    if state == "redeem waits":
        await decode.report(free_blocks=0)
        await decode.kv_failed(to_decode)
        return legs[:1]
    if state in ("committed", "running"):
        await decode.commit(to_decode)
    if state == "running":
        await prefill.end(to_prefill)
        await decode.tokens(to_decode, 0, [10, 11])
        return legs[1:]
    return legs


@pytest.mark.parametrize("state", STATES)
async def test_a_client_that_leaves_cancels_every_leg(state: str) -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        if state == "queued":
            await decode.report(free_blocks=0)
        reader = bench.start()
        legs = await brought_to(state, bench, prefill, decode)
        reader.stream.cancel("client gone")
        reader.stream.cancel("twice")
        for worker, submit in legs:
            assert (await worker.take_cancel(submit)).reason == "client gone"
        await settle()
        assert isinstance(reader.error, RequestCancelled)
        assert (prefill.inbox, decode.inbox) == ([], [])


@pytest.mark.parametrize("state", STATES)
async def test_a_deadline_cancels_every_leg(state: str) -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        if state == "queued":
            await decode.report(free_blocks=0)
        reader = bench.start(timeout_s=5.0)
        legs = await brought_to(state, bench, prefill, decode)
        await bench.advance(4.5)
        assert reader.error is None
        await bench.advance(0.5)
        assert isinstance(reader.error, DeadlineExceeded)
        for worker, submit in legs:
            await worker.take_cancel(submit)


async def test_cancel_drops_what_the_client_has_not_read() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=50)
        _, to_decode = await bench.committed(prefill, decode)
        stream = reader.stream
        await decode.tokens(to_decode, 1, [11])
        stream.cancel("stop string")
        await settle()
        assert reader.token_ids == [10, 11]
        await decode.take_cancel(to_decode)
        await decode.tokens(to_decode, 2, [12])  # on its way when the cancel came
        assert reader.token_ids == [10, 11]
