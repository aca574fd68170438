"""When all goes well: two workers, one worker, one token, order and duplicates."""

from __future__ import annotations

from dataclasses import replace

from pdserve.messages import FirstToken, Tokens
from pdserve.types import FinishReason, KvTiming, Leg, PrefillTiming, RequestId, Role
from support.router_bench import RouterBench
from support.scripted_worker import settle, token_event


async def test_prefill_gives_the_first_token_and_decode_the_rest() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start([1, 2, 3, 4, 5], max_tokens=4)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        assert to_prefill.attempt.epoch == 1
        assert to_prefill.attempt.forced_ids == ()
        ticket = to_prefill.ticket
        assert ticket is not None
        assert (ticket.worker_id, ticket.incarnation) == ("P1", "a")
        assert (ticket.epoch, ticket.num_tokens) == (1, 5)
        assert ticket.expires_in_s == 120.0
        assert bench.router.status().num_tickets == 1
        await prefill.first_token(to_prefill, 10)
        assert reader.token_ids == [10]
        await decode.commit(to_decode, KvTiming("tcp", 5, 4000, 0.5))
        await prefill.end(to_prefill)
        (pair,) = bench.router.status().kv_pairs
        assert (pair.prefill_worker, pair.decode_worker) == ("P1", "D1")
        assert (pair.transport, pair.num_bytes, pair.read_bytes_per_s) == ("tcp", 4000, 8000)
        assert bench.router.status().num_tickets == 0
        await decode.tokens(to_decode, 0, [10, 11])
        await decode.tokens(to_decode, 2, [12])
        await decode.tokens(to_decode, 3, [13], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]
        assert reader.finish is FinishReason.LENGTH
        assert (prefill.inbox, decode.inbox) == ([], [])


async def test_one_token_needs_no_decode_worker() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=1)
        submit = await prefill.take_submit(Leg.PREFILL)
        assert submit.ticket is None
        await prefill.admit(submit)
        await prefill.first_token(submit, 10, FinishReason.LENGTH)
        assert reader.token_ids == [10]
        assert reader.finish is FinishReason.LENGTH
        assert decode.inbox == []


async def test_a_terminal_first_token_cancels_the_decode_leg() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=4)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await prefill.first_token(to_prefill, 256, FinishReason.STOP)
        assert reader.finish is FinishReason.STOP
        await decode.take_cancel(to_decode)
        assert prefill.inbox == []


async def test_a_decode_leg_that_finished_at_prefill_ends_before_the_first_token() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=4)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.end(to_decode)
        assert reader.num_ends == 0
        await prefill.first_token(to_prefill, 256, FinishReason.STOP)
        assert reader.token_ids == [256]


async def test_events_of_two_workers_may_overtake_each_other() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=4)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await decode.commit(to_decode)
        assert reader.token_ids == []
        await decode.tokens(to_decode, 0, [10])
        await decode.tokens(to_decode, 1, [11])
        await prefill.first_token(to_prefill, 10)
        await prefill.end(to_prefill)
        await decode.tokens(to_decode, 2, [12, 13], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]


async def test_repeated_tokens_are_delivered_once() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=4)
        _, to_decode = await bench.committed(prefill, decode)
        await decode.tokens(to_decode, 0, [10, 11])
        await decode.tokens(to_decode, 0, [10, 11, 12])
        await decode.tokens(to_decode, 3, [13], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12, 13]


async def test_a_worker_that_forgets_to_stop_is_stopped_at_max_tokens() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=2)
        _, to_decode = await bench.committed(prefill, decode)
        await decode.tokens(to_decode, 1, [11, 12, 13], FinishReason.STOP)
        assert reader.token_ids == [10, 11]
        assert reader.finish is FinishReason.LENGTH


async def test_the_stream_ends_and_stays_ended() -> None:
    async with RouterBench() as bench:
        prefill, _ = await bench.join_pair()
        reader = bench.start(max_tokens=1)
        submit = await prefill.take_submit()
        await prefill.admit(submit)
        await prefill.first_token(submit, 10, FinishReason.LENGTH)
        await prefill.first_token(submit, 11, FinishReason.LENGTH)
        assert [token async for token in reader.stream] == []
        reader.stream.cancel("too late")
        await settle()
        assert reader.error is None


async def test_a_client_that_does_not_read_stalls_nobody() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        bench.start(max_tokens=100, request_id="quick")
        first, first_decode = await bench.committed(prefill, decode)
        slow = bench.router.start(replace(first.attempt.request, request_id=RequestId("slow")))
        _, to_decode = await bench.committed(prefill, decode)
        await decode.report(
            Tokens(tuple(token_event(to_decode, i, 50) for i in range(1, 99))),
            Tokens(tuple(token_event(first_decode, i, 60) for i in range(1, 99))),
        )
        assert slow.num_buffered == 99
        assert len(bench.readers[0].token_ids) == 99
        await decode.tokens(to_decode, 99, [1], FinishReason.LENGTH)
        await decode.tokens(first_decode, 99, [1], FinishReason.LENGTH)
        assert len([token async for token in slow]) == 100


async def test_colocated_needs_one_worker() -> None:
    async with RouterBench(mode="colocated") as bench:
        decode = await bench.join("D1", Role.DECODE)
        assert bench.router.status().can_serve()
        reader = bench.start(max_tokens=3)
        submit = await decode.take_submit(Leg.COLOCATED)
        assert submit.ticket is None
        await decode.admit(submit)
        await decode.report(
            FirstToken(token_event(submit, 0, 10), PrefillTiming(queue_s=0.0, compute_s=0.0))
        )
        await decode.tokens(submit, 0, [10, 11])
        await decode.tokens(submit, 2, [12], FinishReason.LENGTH)
        assert reader.token_ids == [10, 11, 12]


async def test_a_request_id_that_is_in_use_gets_a_variant() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        first = bench.start(max_tokens=1, request_id="same")
        second = bench.start(max_tokens=1, request_id="same")
        assert first.stream.request_id == "same"
        assert second.stream.request_id == "same~2"
        for token_id in (10, 20):
            submit = await prefill.take_submit()
            await prefill.admit(submit)
            await prefill.first_token(submit, token_id, FinishReason.LENGTH)
        assert (first.token_ids, second.token_ids) == ([10], [20])
        third = bench.start(max_tokens=1, request_id="same")  # legs of the first two not ended yet
        assert third.stream.request_id == "same~3"
        third.stream.cancel("enough")
        assert decode.inbox == []
