"""A prefill leg is refused, cancelled, expires or fails, in every state of its table."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pdserve.errors import ProtocolError
from pdserve.messages import (
    Admitted,
    Busy,
    Ended,
    Failed,
    FirstToken,
    Submit,
)
from pdserve.types import (
    Leg,
    RequestId,
)
from support.fake_engine import make_attempt
from support.prefill_bench import MANY, NUM_BLOCKS, Bench, prompt, reach, settle
from support.recording_sink import RecordingSink


async def test_busy_without_blocks_for_the_whole_context(bench: Bench) -> None:
    bench.runner.gate.clear()
    bench.submit(40, ticket=None, request_id="r1")
    bench.submit(25, ticket=None, request_id="r2")
    assert bench.sink.events[-1] == Busy(RequestId("r2"), 1, Leg.PREFILL, NUM_BLOCKS - 10)
    bench.submit(24, ticket=None, request_id="r3")
    assert isinstance(bench.sink.events[-1], Admitted)
    bench.runner.gate.set()
    await bench.sink.number(Ended, 2)


async def test_draining_answers_busy_and_lets_legs_end(bench: Bench) -> None:
    export = await bench.computed()
    bench.worker.begin_drain()
    bench.submit(4, request_id="r2", ticket="t2")
    assert isinstance(bench.sink.events[-1], Busy)
    assert bench.worker.status().draining
    drained = asyncio.create_task(bench.worker.drained())
    await settle()
    assert not drained.done()
    export.ack()
    await drained
    assert bench.sink.kinds[-1] == "Ended"


@pytest.mark.parametrize("open_timeout_s", [0.0])
async def test_no_reader_in_time(bench: Bench) -> None:
    export = bench.submit_with_ticket()
    failed = await bench.sink.first(Failed)
    assert failed.code == "peer_silent"
    assert export.closed is not None
    assert bench.worker.loop.num_steps == 0
    await bench.sink.first(Ended)


@pytest.mark.parametrize("state", ["waiting", "computing", "computed"])
async def test_expiry_fails_the_leg(bench: Bench, state: str) -> None:
    export = await reach(bench, state)
    export.expire()
    failed = await bench.sink.first(Failed)
    bench.runner.gate.set()
    await bench.sink.first(Ended)
    assert failed.code == "ticket_expired"


@pytest.mark.parametrize("how", ["cancel", "session ended", "close"])
@pytest.mark.parametrize("state", ["waiting", "queued", "computing", "computed"])
async def test_a_leg_can_be_stopped_in_every_state(bench: Bench, state: str, how: str) -> None:
    export = await reach(bench, state)
    if how == "cancel":
        bench.worker.cancel(RequestId("r1"), 1, "client left", bench.sink)
    elif how == "session ended":
        bench.worker.session_ended(bench.sink)
    else:
        bench.runner.gate.set()
        await bench.worker.close()
    assert export.closed is not None
    assert export.closed[0] == "ticket_unknown"
    if how != "close":
        # What a running step touches comes back only after it.
        ended = bench.sink.of(Ended)
        assert (bench.pool.num_free < NUM_BLOCKS, ended == []) == (state == "computing",) * 2
        assert bench.worker.status().num_queued == 0
    bench.runner.gate.set()
    await bench.sink.first(Ended)
    await settle()
    assert bench.sink.of(Ended) == [Ended(RequestId("r1"), 1, Leg.PREFILL)]
    assert len(bench.sink.of(FirstToken)) == (state == "computed")
    assert bench.sink.of(Failed) == []


async def test_cancel_without_ticket_while_computing(bench: Bench) -> None:
    bench.runner.gate.clear()
    bench.submit(20, ticket=None)
    await bench.runner.entered.wait()
    bench.worker.cancel(RequestId("r1"), 1, "x", bench.sink)
    bench.runner.gate.set()
    await bench.sink.first(Ended)
    assert bench.worker.loop.num_steps == 1


async def test_cancel_of_unknown_older_or_foreign_legs_does_nothing(bench: Bench) -> None:
    export = bench.submit_with_ticket(epoch=3)
    other = RecordingSink()
    bench.worker.cancel(RequestId("r9"), 9, "x", bench.sink)
    bench.worker.cancel(RequestId("r1"), 2, "x", bench.sink)
    bench.worker.cancel(RequestId("r1"), 3, "x", other)
    bench.worker.session_ended(other)
    await settle()
    assert export.closed is None
    assert bench.sink.kinds == ["Admitted"]
    assert other.events == []


async def test_a_blocks_last_pin_of_a_sender_delays_ended(bench: Bench) -> None:
    export = await bench.computed()
    export.lease.pin()
    bench.worker.cancel(RequestId("r1"), 1, "x", bench.sink)
    await settle()
    assert bench.sink.of(Ended) == []
    export.lease.unpin()
    await bench.sink.first(Ended)


async def test_failed_step_fails_its_legs_and_spares_the_others(bench: Bench) -> None:
    export = await bench.computing()
    other = bench.submit(8, request_id="r2", ticket="t2")
    assert other is not None
    bench.runner.failure = RuntimeError("device lost")
    bench.runner.gate.set()
    failed = await bench.sink.first(Failed)
    assert (failed.request_id, failed.code) == ("r1", "engine_failure")
    assert "device lost" in failed.detail
    assert export.closed is not None
    other.open()
    assert (await bench.sink.first(FirstToken)).token.request_id == "r2"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"num_tokens": 61}, "context_length_exceeded", "at most 60"),
        ({"token": 320}, "invalid_request", "token id 320"),
        ({"token": -1}, "invalid_request", "token id -1"),
        ({"incarnation": "older"}, "ticket_unknown", "older"),
        ({"ticket_epoch": 4}, "invalid_request", "epoch 4"),
        ({"ticket_tokens": 9}, "invalid_request", "num_tokens 9"),
    ],
)
async def test_what_can_never_work_is_admitted_and_fails_at_once(
    bench: Bench, change: dict[str, object], code: str, words: str
) -> None:
    ids = prompt(int(str(change.get("num_tokens", 8))))
    ids[-1] = int(str(change.get("token", ids[-1])))
    ticket = replace(
        bench.ticket(int(str(change.get("ticket_tokens", len(ids))))),
        incarnation=str(change.get("incarnation", "inc")),
        epoch=int(str(change.get("ticket_epoch", 1))),
    )
    bench.worker.submit(
        Submit(1, Leg.PREFILL, make_attempt(ids, sampling=MANY), ticket), bench.sink
    )
    assert bench.sink.kinds == ["Admitted", "Failed", "Ended"]
    failed = bench.sink.of(Failed)[0]
    assert failed.code == code
    assert words in failed.detail
    assert bench.exporter.exports == {}


async def test_other_legs_are_a_protocol_error(bench: Bench) -> None:
    with pytest.raises(ProtocolError, match="decode leg"):
        bench.worker.submit(Submit(1, Leg.DECODE, make_attempt([1]), None), bench.sink)
    assert bench.sink.events == []
