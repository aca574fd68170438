"""The parts of the ledger add up, whatever the workers claim and whatever went wrong before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.request_timing import RequestTiming
from pdserve.types import DecodeTiming, FinishReason, KvTiming, PrefillTiming, WorkerId
from router.ledger import Ledger
from support.router_bench import RouterBench

P1, P2, D1 = WorkerId("P1"), WorkerId("P2"), WorkerId("D1")


def filled(prefill: PrefillTiming, decode: DecodeTiming) -> RequestTiming:
    """Started 100, sent 101, token 0 at 102, commit 102.5, token 1 at 103.5, ended 104."""
    ledger = Ledger(100.0, tokenize_s=0.25, num_prompt_tokens=7)
    ledger.dispatched(101.0, P1, D1)
    ledger.delivered(102.0, 0, epoch=1)
    ledger.prefill_measured(1, prefill)
    ledger.committed(102.5, KvTiming("grpc", 7, 700, 0.4, passed_over="shm,tcp"))
    ledger.decode_measured(decode)
    ledger.delivered(103.5, 1, epoch=1)
    ledger.ended(104.0)
    return ledger.timing(now_s=999.0)


def test_all_parts_of_a_request_that_went_well() -> None:
    assert filled(PrefillTiming(0.2, 0.5), DecodeTiming(0.1, 0.3)) == RequestTiming(
        tokenize_s=0.25,
        queue_s=1.0,
        prefill_queue_s=0.2,
        prefill_compute_s=0.5,
        first_token_return_s=pytest.approx(0.3),
        kv_bytes=700,
        kv_tokens=7,
        kv_transport="grpc",
        kv_passed_over="shm,tcp",
        kv_transfer_s=0.4,
        kv_exposed_s=0.5,
        decode_queue_s=0.1,
        decode_first_step_s=0.3,
        token_return_s=pytest.approx(0.6),
        total_s=4.25,
        prefill_worker="P1",
        decode_worker="D1",
        num_dispatches=1,
        num_prompt_tokens=7,
        num_generated_tokens=2,
        prefill_place="remote",
    )


_measured = st.floats(-10, 1e6)


@given(_measured, _measured, _measured, _measured)
def test_parts_add_up_whatever_workers_claim(a: float, b: float, c: float, d: float) -> None:
    timing = filled(PrefillTiming(a, b), DecodeTiming(c, d))
    assert timing.ttft_s == pytest.approx(2.25, abs=1e-9)
    assert timing.first_gap_s == pytest.approx(1.5, abs=1e-9)
    parts = (
        timing.prefill_queue_s, timing.prefill_compute_s, timing.first_token_return_s,
        timing.kv_exposed_s, timing.decode_queue_s, timing.decode_first_step_s,
        timing.token_return_s,
    )  # fmt: skip
    assert min(parts) >= 0.0


def test_a_ledger_before_its_time() -> None:
    ledger = Ledger(100.0, 0.5, 7)
    assert ledger.timing(103.0).queue_s == 3.0
    assert ledger.timing(103.0).total_s == 3.5
    ledger.dispatched(104.0, P1, D1)
    assert ledger.timing(109.0).queue_s == 4.0
    ledger.delivered(106.0, 0, epoch=1)
    assert ledger.timing(109.0).ttft_s == pytest.approx(6.5)
    assert ledger.timing(109.0).first_gap_s == 0.0


def test_a_failed_attempt_before_the_first_token_counts_as_queue() -> None:
    ledger = Ledger(100.0, 0.0, 7)
    ledger.dispatched(101.0, P1, D1)
    ledger.dispatched(105.0, P2, D1)
    ledger.delivered(106.0, 0, epoch=2)
    ledger.prefill_measured(1, PrefillTiming(9.0, 9.0))  # of the attempt that failed
    ledger.prefill_measured(2, PrefillTiming(0.0, 0.75))
    timing = ledger.timing(106.0)
    assert (timing.queue_s, timing.prefill_compute_s) == (5.0, 0.75)
    assert (timing.prefill_worker, timing.num_dispatches) == ("P2", 2)
    assert timing.ttft_s == pytest.approx(6.0)


def test_a_redeem_does_not_move_the_start_of_its_prefill() -> None:
    ledger = Ledger(100.0, 0.0, 7)
    ledger.dispatched(101.0, P1, D1)
    ledger.dispatched(105.0, P1, D1, keeps_prefill=True)
    ledger.delivered(106.0, 0, epoch=2)
    assert ledger.timing(106.0).queue_s == 1.0


def test_a_failure_between_the_first_two_tokens_lies_in_the_exposed_transfer() -> None:
    ledger = Ledger(100.0, 0.0, 7)
    ledger.dispatched(100.0, P1, D1)
    ledger.delivered(101.0, 0, epoch=1)
    ledger.committed(101.5, KvTiming("grpc", 7, 700, 0.4))
    ledger.decode_measured(DecodeTiming(7.0, 7.0))  # of a worker that died then
    ledger.dispatched(102.0, P1, D1)
    ledger.committed(103.0, KvTiming("grpc", 8, 800, 0.2))
    ledger.decode_measured(DecodeTiming(0.1, 0.2))
    ledger.delivered(104.0, 1, epoch=2)
    timing = ledger.timing(104.0)
    assert timing.kv_exposed_s == 2.0
    assert (timing.decode_queue_s, timing.decode_first_step_s) == (0.1, 0.2)
    assert (timing.kv_tokens, timing.kv_bytes) == (8, 800)
    assert timing.first_gap_s == pytest.approx(3.0)


def test_what_comes_after_the_second_token_changes_no_part_of_the_gap() -> None:
    ledger = Ledger(100.0, 0.0, 7)
    ledger.dispatched(100.0, P1, D1)
    ledger.delivered(101.0, 0, epoch=1)
    ledger.delivered(102.0, 1, epoch=2)
    before = ledger.timing(102.0)
    ledger.dispatched(103.0, P1, D1)
    ledger.committed(104.0, KvTiming("grpc", 9, 900, 0.2))
    ledger.decode_measured(DecodeTiming(1.0, 1.0))
    after = ledger.timing(102.0)
    assert after.kv_bytes == 900
    assert (after.first_gap_s, after.token_return_s) == (1.0, before.token_return_s)


def test_a_commit_before_the_first_token_is_wholly_hidden() -> None:
    ledger = Ledger(100.0, 0.0, 7)
    ledger.dispatched(100.0, P1, D1)
    ledger.committed(100.5, KvTiming("grpc", 7, 700, 0.4))
    ledger.delivered(101.0, 0, epoch=1)
    ledger.delivered(102.0, 1, epoch=1)
    assert ledger.timing(102.0).kv_exposed_s == 0.0
    assert ledger.timing(102.0).first_gap_s == 1.0


async def test_the_ledger_of_a_stream_adds_up_on_the_routers_clock() -> None:
    async with RouterBench(worker_loss_s=1000.0) as bench:
        reader = bench.start(max_tokens=3, tokenize_s=0.5)
        await bench.advance(1.0)
        prefill, decode = await bench.join_pair()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await bench.advance(2.0)
        await prefill.first_token(to_prefill, 10, timing=PrefillTiming(0.5, 1.25))
        await bench.advance(0.25)
        await decode.commit(to_decode, KvTiming("inproc", 5, 5000, 0.125))
        await prefill.end(to_prefill)
        await bench.advance(1.0)
        await decode.tokens(to_decode, 0, [10, 11], timing=DecodeTiming(0.25, 0.5))
        await bench.advance(3.0)
        await decode.tokens(to_decode, 2, [12], FinishReason.LENGTH)
        await bench.advance(50.0)
        timing = reader.stream.timing
        assert timing.ttft_s == pytest.approx(0.5 + 1.0 + 2.0)
        assert timing.first_token_return_s == pytest.approx(0.25)
        assert timing.first_gap_s == pytest.approx(1.25)
        assert timing.token_return_s == pytest.approx(0.25)
        assert timing.total_s == pytest.approx(7.75)
        assert (timing.kv_bytes, timing.num_generated_tokens) == (5000, 3)


@pytest.mark.parametrize("fails", ["before the first token", "before the commit", "after it"])
async def test_the_parts_of_a_request_that_was_tried_again_add_up(fails: str) -> None:
    async with RouterBench(worker_loss_s=1000.0) as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start(max_tokens=4, tokenize_s=0.5)
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        await bench.advance(1.0)
        first_s = 1.0
        if fails == "before the first token":
            await prefill.fail(to_prefill, "engine_failure")
            await decode.take_cancel(to_decode)
        else:
            await prefill.first_token(to_prefill, 10, timing=PrefillTiming(0.25, 0.5))
            if fails == "after it":
                await bench.advance(2.0)
                await decode.commit(to_decode)
                await prefill.end(to_prefill)
            await decode.fail(to_decode, "engine_failure")
        old, (to_prefill, to_decode) = to_prefill, await bench.dispatched(prefill, decode)
        await bench.advance(4.0)
        index = to_prefill.attempt.first_index
        await prefill.first_token(to_prefill, 10 + index, timing=PrefillTiming(0.5, 9.0))
        if fails == "before the first token":
            first_s = 5.0
        await bench.advance(8.0)
        await decode.commit(to_decode)
        await prefill.end(to_prefill)
        if fails == "before the commit":
            await prefill.end(old)
        await bench.advance(16.0)
        rest = list(range(11 + index, 14))
        timing = DecodeTiming(0.25, 99.0)
        await decode.tokens(to_decode, index + 1, rest, FinishReason.LENGTH, timing)
        assert reader.token_ids == [10, 11, 12, 13]
        ledger = reader.stream.timing
        assert ledger.num_dispatches == 2
        assert ledger.ttft_s == 0.5 + first_s
        second_s = {"before the first token": 29.0, "before the commit": 29.0, "after it": 7.0}
        assert ledger.first_gap_s == second_s[fails] - first_s
        end_s = {"before the first token": 29.0, "before the commit": 29.0, "after it": 31.0}
        assert ledger.total_s == 0.5 + end_s[fails]
