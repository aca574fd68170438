"""The waterfall: bars lie where their time lay, and follow on each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.waterfall import Bar, bars_of, waterfall_lines
from pdserve.public import RequestRecord
from pdserve.request_timing import RequestTiming

TIMING = RequestTiming(
    receive_s=0.001, tokenize_s=0.001, queue_s=0.002, prefill_queue_s=0.004,
    prefill_compute_s=0.040, first_token_return_s=0.002, first_token_send_s=0.001,
    kv_bytes=4096, kv_tokens=8, kv_transport="grpc", kv_transfer_s=0.03, kv_exposed_s=0.01,
    decode_queue_s=0.005, decode_first_step_s=0.02, token_return_s=0.015, total_s=0.5,
    prefill_worker="p0", decode_worker="d0", num_dispatches=1, num_prompt_tokens=8,
    num_generated_tokens=20,
)  # fmt: skip


def test_bars_follow_on_each_other_up_to_the_second_token() -> None:
    bars = bars_of(TIMING)
    solid = [bar for bar in bars if not bar.beside]
    for before, bar in zip(solid, solid[1:], strict=False):
        if before.label == "send":  # the gap to the second token begins at the router
            assert bar.start_s == before.start_s
        else:
            assert bar.start_s == pytest.approx(before.start_s + before.length_s)
    at_router_s = TIMING.ttft_s - TIMING.first_token_send_s
    assert solid[-1].start_s + solid[-1].length_s == pytest.approx(at_router_s + TIMING.first_gap_s)
    (transfer,) = [bar for bar in bars if bar.beside]
    # It ended when the exposed part did.
    assert transfer.start_s + transfer.length_s == pytest.approx(at_router_s + 0.01)


def test_what_the_sender_states_comes_first_and_moves_the_rest() -> None:
    timing = replace(TIMING, before_face_s=0.5)
    stated, *moved = bars_of(timing)
    assert stated == Bar("before face, stated", 0.0, 0.5)
    assert moved == [
        replace(bar, start_s=pytest.approx(bar.start_s + 0.5)) for bar in bars_of(TIMING)
    ]
    told = "\n".join(waterfall_lines(RequestRecord("req-1", "stop", timing), width=50))
    assert "500.0 ms before the face, as its sender states (X-Request-Start)" in told
    assert "X-Request-Start" not in "\n".join(
        waterfall_lines(RequestRecord("req-1", "stop", TIMING), width=50)
    )


def test_one_token_ends_with_the_first() -> None:
    bars = bars_of(RequestTiming(prefill_compute_s=1.0, num_generated_tokens=1, prefill_worker="p"))
    assert [bar.label for bar in bars][-1] == "send"


def test_lines_are_as_wide_as_asked_and_bars_in_their_place() -> None:
    lines = waterfall_lines(RequestRecord("req-1", "stop", TIMING), width=50)
    assert lines[0] == "req-1: stop, p0 -> d0"
    drawn = {line[2:22].strip(): line.split("|")[1] for line in lines if "|" in line}
    assert {len(text) for text in drawn.values()} == {50}
    assert drawn["prefill"].count("█") == 20  # 40 of 100 ms
    assert drawn["prefill"].index("█") == 4  # after 8 ms
    assert drawn["KV transfer"].count("░") == 15
    assert "later tokens" in "\n".join(lines)
    assert lines[-1].startswith("KV: 4,096 bytes from p0 to d0")


def test_a_request_that_never_ran_is_drawn_too() -> None:
    record = RequestRecord("req-2", "no_workers", RequestTiming(queue_s=60.0, total_s=60.0))
    lines = waterfall_lines(record, width=20)
    assert lines[0] == "req-2: no_workers"
    assert any("router queue" in line and "█" * 20 in line for line in lines)
    assert waterfall_lines(RequestRecord("r", "cancelled", RequestTiming()), width=20)


def test_what_lasted_at_all_is_seen() -> None:
    timing = RequestTiming(tokenize_s=1e-6, queue_s=10.0)
    (line,) = [text for text in waterfall_lines(RequestRecord("r", "stop", timing), 20)
               if "tokenize" in text and "|" in text]  # fmt: skip
    assert "▏" in line
    assert Bar("tokenize", 0.0, 1e-6) in bars_of(timing)
