"""With the face's parts, the ledger is the span from the arrival to the first piece sent."""

from __future__ import annotations

import pytest

from pdserve.clock import ManualClock
from pdserve.request_start import Arrival
from pdserve.request_timing import RequestTiming
from pdserve.types import FinishReason, SamplingParams
from router.face_timing import FaceTiming
from router.recent_requests import RecentRequests
from router.text_generation import TextService
from router.text_job import TextJob, TextPrompt
from support.scripted_tokens import ScriptedTokens, byte_text_model, script

ROUTERS = RequestTiming(
    tokenize_s=0.25, queue_s=0.5, prefill_queue_s=0.125, prefill_compute_s=1.0,
    first_token_return_s=0.125, total_s=8.0,
)  # fmt: skip


def test_parts_add_up_to_what_the_client_saw() -> None:
    clock = ManualClock(100.0)
    face = FaceTiming(clock, started_s=100.0, arrival=Arrival(0.75, 3.0))
    clock.advance(2.5)  # the router's parts are 2.0 of it
    assert face.first_piece_sent()
    clock.advance(50.0)
    assert not face.first_piece_sent()  # only the first counts
    timing = face.completed(ROUTERS)
    assert (timing.receive_s, timing.first_token_send_s) == (0.75, 0.5)
    assert timing.ttft_s == 0.75 + 2.5
    assert timing.client_ttft_s == 3.0 + timing.ttft_s  # what its sender states is not among them
    assert timing.total_s == 8.75


def test_an_answer_that_is_not_streamed_has_no_sending() -> None:
    timing = FaceTiming(ManualClock(100.0), 100.0, Arrival(0.5)).completed(ROUTERS)
    assert timing.first_token_send_s == 0.0
    assert timing.ttft_s == 0.5 + ROUTERS.ttft_s


def test_the_total_holds_a_first_piece_that_was_the_last() -> None:
    clock = ManualClock(100.0)
    face = FaceTiming(clock, 100.0, Arrival())
    clock.advance(9.0)
    face.first_piece_sent()
    assert face.completed(ROUTERS).total_s == face.completed(ROUTERS).ttft_s == 9.0


@pytest.mark.parametrize("num_tokens", [1, 3])
async def test_what_is_kept_is_complete_however_short_the_answer(num_tokens: int) -> None:
    clock, recent = ManualClock(100.0), RecentRequests(4)
    service = TextService(
        ScriptedTokens(script("abc")), byte_text_model(), clock=clock, recent=recent
    )
    job = TextJob(
        prompt=TextPrompt("Hi"), sampling=SamplingParams(max_tokens=99), max_tokens=num_tokens,
        seed=1,
    )  # fmt: skip
    generation = await service.start(job, arrival=Arrival(0.5))
    async for _ in generation:
        clock.advance(3.0)
        generation.first_piece_sent()
    kept = recent.find(generation.request_id)
    assert kept.outcome == FinishReason.LENGTH.value
    assert kept.timing == generation.timing
    assert kept.timing.ttft_s == 0.5 + 3.0


async def test_a_request_that_was_cancelled_is_kept_as_such() -> None:
    recent = RecentRequests(4)
    service = TextService(ScriptedTokens(script("abc")), byte_text_model(), recent=recent)
    job = TextJob(prompt=TextPrompt("Hi"), sampling=SamplingParams(), max_tokens=3, seed=1)
    (await service.start(job)).cancel("enough")
    assert recent.find("last").outcome == "cancelled"
