"""A later epoch takes over what a leg holds, or replaces it."""

from __future__ import annotations

import pytest

from engine.fake_runner import fake_tokens
from pdserve.messages import (
    Ended,
    Failed,
    FirstToken,
)
from pdserve.types import (
    Leg,
    RequestId,
)
from support.prefill_bench import MANY, Bench, prompt, reach


@pytest.mark.parametrize("state", ["waiting", "queued", "computing", "computed"])
async def test_redeem_hands_everything_to_the_later_epoch(bench: Bench, state: str) -> None:
    export = await reach(bench, state)
    again = bench.submit_with_ticket(epoch=2)
    assert again is export
    kinds = bench.sink.kinds
    first_ended = kinds.index("Ended")
    assert kinds[first_ended : first_ended + 2] == ["Ended", "Admitted"]
    assert bench.sink.of(Ended) == [Ended(RequestId("r1"), 1, Leg.PREFILL)]
    bench.runner.gate.set()
    export.open()
    await bench.sink.until(
        lambda sink: any(event.token.epoch == 2 for event in sink.of(FirstToken))
    )
    tokens = bench.sink.of(FirstToken)
    assert len({event.token.token_id for event in tokens}) == 1
    assert len(tokens) == 1 + (state == "computed")
    assert export.advanced == [8, 16, 20]  # computed once
    export.ack()
    await bench.sink.number(Ended, 2)
    assert bench.sink.of(Ended)[1].epoch == 2


@pytest.mark.parametrize("open_timeout_s", [0.05])
async def test_redeem_that_nobody_opens_fails(bench: Bench) -> None:
    await bench.computed()
    bench.submit_with_ticket(epoch=2)
    failed = await bench.sink.first(Failed)
    assert (failed.epoch, failed.code) == (2, "peer_silent")
    await bench.sink.number(Ended, 2)


async def test_redeem_of_a_ticket_that_is_gone_computes_again(bench: Bench) -> None:
    export = await bench.computed()
    export.ack()
    await bench.sink.first(Ended)
    again = bench.submit_with_ticket(epoch=2)
    assert again is not export
    again.open()
    await bench.sink.number(FirstToken, 2)
    assert again.committed == export.committed


async def test_later_epoch_with_other_tokens_replaces_the_leg(bench: Bench) -> None:
    export = await bench.computed()
    token = bench.sink.of(FirstToken)[0].token.token_id
    again = bench.submit(20, epoch=2, ticket="t2", forced_ids=[token])
    assert again is not None
    assert export.closed is not None
    assert bench.sink.kinds == ["Admitted", "FirstToken", "Ended", "Admitted"]
    again.open()
    first = (await bench.sink.number(FirstToken, 2))[1]
    assert (first.token.index, first.token.token_id) == (1, fake_tokens(prompt(20), MANY)[1])


@pytest.mark.parametrize("epoch", [1, 2])
async def test_a_stale_epoch_is_refused_and_changes_nothing(bench: Bench, epoch: int) -> None:
    export = bench.submit_with_ticket(epoch=2)
    bench.submit_with_ticket(epoch=epoch)
    assert bench.sink.kinds == ["Admitted", "Busy"]
    assert export.closed is None
