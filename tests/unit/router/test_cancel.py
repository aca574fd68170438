"""A client that leaves and a deadline that passes, in every state of a request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdserve.errors import DeadlineExceeded, RequestCancelled
from pdserve.messages import Submit
from pdserve.types import RequestId
from support.router_bench import RouterBench
from support.scripted_worker import ScriptedWorker, settle

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
        await settle()
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
        first = bench.start(max_tokens=50)
        submit, _ = await bench.committed(prefill, decode)
        unread = bench.router.start(replace(submit.attempt.request, request_id=RequestId("unread")))
        _, to_decode = await bench.committed(prefill, decode)
        assert unread.num_buffered == 1
        unread.cancel("stop string")
        await decode.take_cancel(to_decode)
        with pytest.raises(RequestCancelled):
            await anext(unread)
        first.stream.cancel("enough")


async def test_tokens_on_their_way_when_the_cancel_came_are_dropped() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=50)
        _, to_decode = await bench.committed(prefill, decode)
        reader.stream.cancel("stop string")
        await decode.take_cancel(to_decode)
        await decode.tokens(to_decode, 1, [11])
        assert reader.token_ids == [10]
