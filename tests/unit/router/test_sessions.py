"""Every row of docs/protocol.md section 1, and the waits of section 7 that end a session."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pdserve.errors import IncompatibleWorker, ProtocolError, ShuttingDown, WorkerLost
from pdserve.messages import (
    PROTOCOL_VERSION,
    Admitted,
    Drain,
    Goodbye,
    StepReport,
    Welcome,
)
from pdserve.types import FinishReason, Leg, RequestId, Role, WorkerStatus
from support.router_bench import RouterBench
from support.scripted_worker import FINGERPRINT, LAYOUT, LIMITS, ScriptedWorker, make_hello, settle

OLDER = PROTOCOL_VERSION - 1


def worker_ids(bench: RouterBench) -> list[str]:
    return [worker.worker_id for worker in bench.router.status().workers]


# --- greeting ---------------------------------------------------------------------------------


async def test_a_worker_that_fits_is_welcomed() -> None:
    async with RouterBench(heartbeat_s=0.5) as bench:
        worker = await bench.connect("P1", Role.PREFILL)
        welcome = worker.take(Welcome)
        assert welcome.heartbeat_s == 0.5
        assert welcome.router_id.startswith("router-")
        (entry,) = bench.router.status().workers
        assert (entry.worker_id, entry.incarnation, entry.role) == ("P1", "a", Role.PREFILL)
        assert (entry.limits, entry.device, entry.peer) == (LIMITS, "scripted", "inproc")
        assert entry.endpoints == worker.hello.endpoints


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol_version": OLDER}, f"protocol_version is {OLDER}"),
        ({"model_fingerprint": "other"}, "model_fingerprint of test is other"),
        ({"layout": replace(LAYOUT, head_dim=16)}, "layout.head_dim is 16, that of prefill"),
        ({"layout": replace(LAYOUT, num_kv_heads=2)}, "layout.num_kv_heads is 2"),
    ],
)
async def test_a_worker_that_does_not_fit_is_told_the_field(
    change: dict[str, object], words: str
) -> None:
    async with RouterBench() as bench:
        await bench.join("P1", Role.PREFILL)
        worker = await bench.connect("D1", Role.DECODE, **change)
        assert isinstance(worker.refused, IncompatibleWorker)
        assert words in str(worker.refused)
        assert worker_ids(bench) == ["P1"]


async def test_other_weights_of_the_same_shape_join_only_if_allowed() -> None:
    async with RouterBench() as bench:
        worker = await bench.connect("D1", Role.DECODE, model_fingerprint=FINGERPRINT + ".int8")
        assert isinstance(worker.refused, IncompatibleWorker)
        assert "--mixed-weights allow" in str(worker.refused)
    async with RouterBench(mixed_weights="allow") as bench:
        await bench.join("D1", Role.DECODE, model_fingerprint=FINGERPRINT + ".int8")
        worker = await bench.connect("D2", Role.DECODE, model_fingerprint="another.int8")
        assert isinstance(worker.refused, IncompatibleWorker)
        assert "--mixed-weights" not in str(worker.refused)
        assert worker_ids(bench) == ["D1"]


async def test_layouts_of_one_role_and_of_colocated_workers_may_differ() -> None:
    other = replace(LAYOUT, block_size=8)
    async with RouterBench(mode="colocated") as bench:
        await bench.join("P1", Role.PREFILL)
        await bench.join("D1", Role.DECODE, layout=other)
    async with RouterBench() as bench:
        await bench.join("P1", Role.PREFILL)
        await bench.join("P2", Role.PREFILL, layout=other)


async def test_layouts_that_can_be_converted_join_and_heads_only_one_way() -> None:
    wide = replace(LAYOUT, num_kv_heads=2, block_size=8)
    async with RouterBench() as bench:
        await bench.join("P1", Role.PREFILL, layout=wide)
        await bench.join("D1", Role.DECODE)
        worker = await bench.connect("D2", Role.DECODE, layout=replace(wide, num_kv_heads=3))
        assert "layout.num_kv_heads is 3, that of prefill worker P1" in str(worker.refused)


async def test_a_worker_that_comes_back_is_not_measured_against_itself() -> None:
    async with RouterBench() as bench:
        await bench.join("W", Role.PREFILL)
        await bench.join("W", Role.DECODE, layout=replace(LAYOUT, block_size=8), incarnation="b")
        assert [w.role for w in bench.router.status().workers] == [Role.DECODE]


async def test_another_first_message_closes_the_session() -> None:
    async with RouterBench() as bench:
        worker = ScriptedWorker.connect(make_hello("P1", Role.PREFILL))
        serving = asyncio.create_task(bench.router.serve_worker(worker.far_end))
        await worker.say(Goodbye("hello"))
        await serving
        assert isinstance(worker.refused, ProtocolError)
        assert "Goodbye, not Hello" in str(worker.refused)
        await worker.close()


async def test_a_peer_that_connects_and_says_nothing_is_closed() -> None:
    async with RouterBench(hello_timeout_s=0.01) as bench:
        worker = ScriptedWorker.connect(make_hello("P1", Role.PREFILL))
        await bench.router.serve_worker(worker.far_end)
        await worker.close()
        assert isinstance(worker.refused, ProtocolError)
        assert "no Hello within 0.01 s" in str(worker.refused)


async def test_a_peer_that_breaks_while_greeting_is_forgotten() -> None:
    async with RouterBench() as bench:
        worker = ScriptedWorker.connect(make_hello("P1", Role.PREFILL))
        serving = asyncio.create_task(bench.router.serve_worker(worker.far_end))
        await settle()
        await worker.close()
        await serving
        assert worker_ids(bench) == []


async def test_a_router_that_closes_sends_away_who_is_greeting() -> None:
    async with RouterBench() as bench:
        worker = ScriptedWorker.connect(make_hello("P1", Role.PREFILL))
        serving = asyncio.create_task(bench.router.serve_worker(worker.far_end))
        await settle()
        await bench.router.close()
        assert serving.done()
        await worker.close()
        assert isinstance(worker.refused, ShuttingDown)


# --- joined -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nonsense", [make_hello("P1", Role.PREFILL), "words", None])
async def test_an_unknown_message_is_a_protocol_error(nonsense: object) -> None:
    async with RouterBench() as bench:
        worker = await bench.join("P1", Role.PREFILL)
        await worker.say(nonsense)  # type: ignore[arg-type]
        assert type(worker.refused) is ProtocolError
        assert worker_ids(bench) == []


async def test_a_report_replaces_the_status() -> None:
    async with RouterBench() as bench:
        worker = await bench.join("D1", Role.DECODE)
        await worker.report(free_blocks=7, num_running=3, step=99)
        (entry,) = bench.router.status().workers
        assert (entry.status.free_blocks, entry.status.num_running, entry.status.step) == (7, 3, 99)


async def test_a_silent_worker_is_lost_and_one_that_reports_is_not() -> None:
    async with RouterBench(worker_loss_s=10.0) as bench:
        silent = await bench.join("P1", Role.PREFILL)
        alive = await bench.join("P2", Role.PREFILL)
        await bench.advance(6.0)
        await alive.report()
        await bench.advance(3.5)
        assert worker_ids(bench) == ["P1", "P2"]
        await bench.advance(0.5)
        assert worker_ids(bench) == ["P2"]
        assert isinstance(silent.refused, WorkerLost)
        await bench.advance(6.0)
        assert worker_ids(bench) == []


async def test_a_hung_worker_is_lost_although_it_reports() -> None:
    async with RouterBench() as bench:
        worker = await bench.join("P1", Role.PREFILL)
        await worker.report(step_age_s=9.9)
        assert worker_ids(bench) == ["P1"]
        await worker.report(step_age_s=10.1)
        assert worker_ids(bench) == []
        assert isinstance(worker.refused, WorkerLost)


async def test_a_hung_worker_gets_nothing_new_before_it_is_lost() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        await prefill.report(step_age_s=6.0)
        reader = bench.start(max_tokens=1)
        await settle()
        assert prefill.inbox == []
        await prefill.report(step_age_s=0.0)
        submit = await prefill.take_submit()
        await prefill.admit(submit)
        await prefill.first_token(submit, 10, FinishReason.LENGTH)
        assert reader.token_ids == [10]
        assert decode.inbox == []


async def test_a_submit_without_answer_loses_the_worker_that_goes_on_reporting() -> None:
    async with RouterBench(worker_loss_s=10.0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        _, to_decode = await prefill.take_submit(), await decode.take_submit()
        await decode.admit(to_decode)
        for _ in range(2):
            await bench.advance(4.9)
            await prefill.report()
            await decode.report()
        assert worker_ids(bench) == ["P1", "D1"]
        await bench.advance(0.2)
        assert worker_ids(bench) == ["D1"]
        await decode.take_cancel(to_decode)
        reader.stream.cancel("enough")


async def test_an_answered_submit_does_not_count_as_silence() -> None:
    async with RouterBench(worker_loss_s=10.0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        await bench.dispatched(prefill, decode)
        for _ in range(4):
            await bench.advance(4.9)
            await prefill.report()
            await decode.report()
        assert worker_ids(bench) == ["P1", "D1"]
        reader.stream.cancel("enough")


@pytest.mark.parametrize("incarnation", ["b", "a"], ids=["restarted", "dialled again"])
async def test_a_worker_that_joins_again_replaces_its_old_session(incarnation: str) -> None:
    async with RouterBench() as bench:
        old, decode = await bench.join_pair()
        reader = bench.start()
        to_old, to_decode = await bench.dispatched(old, decode)
        new = await bench.join("P1", Role.PREFILL, incarnation=incarnation)
        assert isinstance(old.refused, WorkerLost)
        await decode.take_cancel(to_decode)
        again, to_decode = await bench.dispatched(new, decode)
        assert again.submit_seq == 1, "numbers count in a session"
        assert again.ticket.incarnation == incarnation  # type: ignore[union-attr]
        assert worker_ids(bench) == ["D1", "P1"]
        reader.stream.cancel("enough")
        del to_old


async def test_a_broken_link_loses_the_worker_and_its_bookings() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        await bench.dispatched(prefill, decode)
        await decode.die()
        assert worker_ids(bench) == ["P1"]
        reader.stream.cancel("enough")


# --- draining ---------------------------------------------------------------------------------


async def test_a_drained_worker_gets_no_work_finishes_and_leaves() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        other = await bench.join("D2", Role.DECODE)
        await other.report(free_blocks=30)
        running = bench.start(max_tokens=2)
        _, to_decode = await bench.committed(prefill, decode)
        bench.router.drain_worker("D1", grace_s=7.0)
        bench.router.drain_worker("D1", grace_s=7.0)
        await settle()
        assert decode.take(Drain).grace_s == 7.0
        assert decode.inbox == []
        assert [w.worker_id for w in bench.router.status().workers if w.draining] == ["D1"]
        next_one = bench.start(max_tokens=2, request_id="next")
        _, to_other = await bench.committed(prefill, other)
        await decode.tokens(to_decode, 1, [11], FinishReason.LENGTH)
        await decode.end(to_decode)
        await decode.goodbye()
        assert worker_ids(bench) == ["P1", "D2"]
        await other.tokens(to_other, 1, [11], FinishReason.LENGTH)
        assert running.token_ids == next_one.token_ids == [10, 11]


async def test_legs_open_at_goodbye_count_as_lost() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        await bench.committed(prefill, decode)
        await decode.goodbye()
        other = await bench.join("D2", Role.DECODE)
        again, _ = await bench.dispatched(prefill, other)
        assert again.attempt.forced_ids == (10,)
        reader.stream.cancel("enough")


async def test_readiness_follows_the_pools() -> None:
    async with RouterBench() as bench:
        router = bench.router
        assert router.status().problem() == "no prefill and no decode worker"
        prefill, decode = await bench.join_pair()
        assert router.status().can_serve()
        router.serving_changed.clear()
        await decode.report(draining=True)
        assert router.serving_changed.is_set()
        assert router.status().problem() == "no decode worker"
        await decode.report(draining=False)
        await prefill.die()
        assert router.status().problem() == "no prefill worker"
        await router.drain(0.0)
        assert router.status().problem() == "the router is shutting down"


# --- bookings ---------------------------------------------------------------------------------


async def test_late_ends_settle_their_bookings() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        reader.stream.cancel("client gone")
        assert [worker.num_legs for worker in bench.router.status().workers] == [1, 1]
        await prefill.end(to_prefill)
        await decode.end(to_decode)
        assert [worker.num_legs for worker in bench.router.status().workers] == [0, 0]


async def test_a_booking_counts_until_a_status_echoes_its_number() -> None:
    async with RouterBench(worker_loss_s=100.0) as bench:
        prefill = await bench.join("P1", Role.PREFILL)
        decode = await bench.join("D1", Role.DECODE)
        await decode.report(free_blocks=5)
        bench.start([1] * 7, max_tokens=2, request_id="a")  # 2 blocks at D
        bench.start([1] * 7, max_tokens=2, request_id="b")
        bench.start([1] * 7, max_tokens=2, request_id="c")  # does not fit any more
        first, second = [await decode.take_submit(Leg.DECODE) for _ in range(2)]
        assert decode.inbox == []
        # A status that has seen the first Submit only: its own figures hold that one.
        late = WorkerStatus(
            total_blocks=64, free_blocks=5, reserved_blocks=2, last_submit_seq=first.submit_seq
        )
        await decode.say(StepReport((), late))
        assert decode.inbox == []
        await decode.say(StepReport((), replace(late, free_blocks=7)))
        third = await decode.take_submit(Leg.DECODE)
        assert third.submit_seq == second.submit_seq + 1
        for reader in bench.readers:
            reader.stream.cancel("enough")
        del prefill


async def test_answers_to_nothing_change_nothing() -> None:
    async with RouterBench() as bench:
        worker = await bench.join("P1", Role.PREFILL)
        await worker.report(Admitted(RequestId("ghost"), 1, Leg.PREFILL))
        assert [entry.num_legs for entry in bench.router.status().workers] == [0]
