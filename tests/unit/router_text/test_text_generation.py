"""Jobs to requests, token events to text, and how a text ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from pdserve.clock import ManualClock
from pdserve.errors import (
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    RetriesExhausted,
)
from pdserve.metrics import ServiceMetrics
from pdserve.request_timing import RequestTiming
from pdserve.types import FinishReason, Request, RequestId, SamplingParams, TokenEvent
from router.chat_template import ChatMessage
from router.text_generation import TextGeneration, TextService
from router.text_job import ChatPrompt, Prompt, TextDelta, TextJob, TextPrompt, TokenPrompt
from router.token_stream import TokenStream
from support.scripted_tokens import BOS, END, ScriptedTokens, byte_text_model, script


def service(
    tokens: ScriptedTokens, metrics: ServiceMetrics | None = None, *, adds_bos: bool = False
) -> TextService:
    return TextService(
        tokens, byte_text_model(adds_bos=adds_bos), metrics=metrics, clock=ManualClock(100.0)
    )


def job(prompt: Prompt | str = "Hi", **fields: object) -> TextJob:
    given = TextPrompt(prompt) if isinstance(prompt, str) else prompt
    sampling = SamplingParams(max_tokens=2**31 - 1)
    plain = TextJob(prompt=given, sampling=sampling, max_tokens=None, seed=7)
    return replace(plain, **fields)  # type: ignore[arg-type]


async def read(generation: TextGeneration) -> list[TextDelta]:
    return [delta async for delta in generation]


async def text_of(tokens: ScriptedTokens, **fields: object) -> tuple[str, TextGeneration]:
    generation = await service(tokens).start(job(**fields))
    deltas = await read(generation)
    assert [d.finish_reason is not None for d in deltas] == [False] * (len(deltas) - 1) + [True]
    assert tokens.num_running == 0
    return "".join(delta.text for delta in deltas), generation


# --- requests ---------------------------------------------------------------------------------


async def test_a_job_becomes_a_request_with_everything_filled_in() -> None:
    tokens = ScriptedTokens(script("x"))
    start = service(tokens, adds_bos=True).start
    await start(job(request_id=RequestId("r1"), priority=3, timeout_s=5.0, max_tokens=9))
    request = tokens.requests[0]
    assert request.request_id == "r1"
    assert request.prompt_ids == (BOS, *b"Hi")
    assert (request.priority, request.deadline_s) == (3, 105.0)
    assert (request.sampling.max_tokens, request.sampling.seed) == (9, 7)


async def test_max_tokens_defaults_to_the_rest_of_the_context() -> None:
    tokens = ScriptedTokens(script("x"), max_model_len=50)
    generation = await service(tokens).start(job("12345"))
    assert generation.sampling.max_tokens == 45


async def test_ids_and_seeds_are_drawn_when_not_given() -> None:
    tokens = ScriptedTokens(script("x"))
    for _ in range(2):
        await service(tokens).start(job(seed=None))
    first, second = tokens.requests
    assert first.request_id.startswith("req-")
    assert first.request_id != second.request_id
    assert first.sampling.seed != second.sampling.seed


async def test_chats_and_token_ids_are_prompts_too() -> None:
    tokens = ScriptedTokens(script("x"))
    texts = service(tokens, adds_bos=True)
    await texts.start(job(ChatPrompt((ChatMessage("user", "A"),))))
    await texts.start(job(TokenPrompt((5, END, 6))))
    assert tokens.requests[0].prompt_ids == (BOS, *b"[user]A[assistant]")
    assert tokens.requests[1].prompt_ids == (5, END, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": TextPrompt("")}, "prompt: must not be empty"),
        ({"prompt": TokenPrompt(())}, "prompt: must hold at least one token"),
        ({"prompt": TokenPrompt((1, 259))}, r"prompt: token id 259 is outside \[0, 259\)"),
        ({"prompt": TokenPrompt((-1,))}, "prompt: token id -1"),
        ({"prompt": TextPrompt("x" * 64)}, "prompt: 64 tokens leave no room .* of 64"),
        ({"prompt": ChatPrompt(())}, "messages: must hold at least one message"),
        ({"prompt": ChatPrompt((ChatMessage("user", "x" * 64),))}, "messages: .* leave no room"),
        ({"max_tokens": 63}, "max_tokens: 2 prompt tokens and 63 new ones are 65, .* of 64"),
        (
            {"prompt": TokenPrompt((1,)), "max_tokens": 64},
            "max_tokens: 1 prompt token and 64 new ones",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"sampling": SamplingParams(stop_token_ids=(300,))}, "stop_token_ids: token id 300"),
        ({"sampling": SamplingParams(logit_bias=((400, 1.0),))}, "logit_bias: token id 400"),
        (
            {"max_tokens": 3, "sampling": SamplingParams(max_tokens=9, min_tokens=4)},
            r"min_tokens: must lie in \[0, 3\], not 4",
        ),
    ],
)
async def test_unusable_jobs_are_refused_by_field_and_limit(
    fields: dict[str, object], message: str
) -> None:
    tokens, metrics = ScriptedTokens(script("x"), max_model_len=64), ServiceMetrics()
    with pytest.raises(InvalidRequest, match=message) as caught:
        await service(tokens, metrics).start(job(**fields))
    assert tokens.requests == []
    assert sample(metrics, "pdserve_requests_total", outcome="refused") == 1
    assert sample(metrics, "pdserve_errors_total", code=caught.value.code) == 1
    is_too_long = "leave no room" in message or "new ones" in message
    assert isinstance(caught.value, ContextTooLong) == is_too_long


def test_a_job_checks_what_needs_no_model() -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        job(stop_strings=("",))
    with pytest.raises(InvalidRequest, match="timeout_s: must lie in"):
        job(timeout_s=0.0)
    with pytest.raises(InvalidRequest, match="priority: must lie in"):
        job(priority=10**9)


# --- text -------------------------------------------------------------------------------------


async def test_text_ends_with_the_stop_token_which_is_not_text() -> None:
    tokens = ScriptedTokens(script("sea 🌊"))
    text, generation = await text_of(tokens)
    assert text == "sea 🌊"
    assert generation.num_completion_tokens == len("sea 🌊".encode()) + 1
    assert generation.num_prompt_tokens == 2


async def test_every_token_has_its_delta_and_no_character_is_split() -> None:
    generation = await service(ScriptedTokens(script("aé"))).start(job())
    deltas = await read(generation)
    assert [(d.text, d.token_ids) for d in deltas] == [
        ("a", (97,)), ("", (0xC3,)), ("é", (0xA9,)), ("", (END,)),
    ]  # fmt: skip
    assert deltas[-1].finish_reason is FinishReason.STOP


async def test_a_limit_inside_a_character_shows_a_replacement() -> None:
    text, generation = await text_of(ScriptedTokens(script("é" * 9)), max_tokens=3)
    assert text == "é\ufffd"
    assert generation.num_completion_tokens == 3


async def test_logprobs_carry_token_text_and_bytes() -> None:
    tokens = ScriptedTokens(script("é"))
    sampling = SamplingParams(max_tokens=99, num_logprobs=1)
    deltas = await read(await service(tokens).start(job(sampling=sampling)))
    entry = deltas[0].logprobs[0]
    assert (entry.chosen.text, entry.chosen.token_bytes) == ("\ufffd", b"\xc3")
    assert (entry.chosen.token_id, entry.chosen.logprob) == (0xC3, -0.5)
    assert [(top.text, top.logprob) for top in entry.top] == [("A", -1.0)]
    assert deltas[-1].logprobs[0].chosen.text == "<end>"


# --- stop strings -----------------------------------------------------------------------------


async def test_a_stop_string_ends_the_text_and_cancels_below() -> None:
    tokens, metrics = ScriptedTokens(script("one. two. three")), ServiceMetrics()
    generation = await service(tokens, metrics).start(job(stop_strings=(". t",)))
    deltas = await read(generation)
    assert "".join(d.text for d in deltas) == "one"
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert generation.num_completion_tokens == len("one. t")
    assert generation.timing.num_generated_tokens == len("one. t")
    assert tokens.cancels == [(generation.request_id, "stop string")]
    assert tokens.num_running == 0
    assert tokens.num_events_made == len("one. t")
    assert sample(metrics, "pdserve_requests_total", outcome="stop") == 1
    assert sample(metrics, "pdserve_requests_total", outcome="cancelled") == 0


async def test_a_beginning_that_leads_nowhere_is_given_out() -> None:
    assert (await text_of(ScriptedTokens(script("a END")), stop_strings=("ENDE",)))[0] == "a END"


async def test_a_stop_string_completed_by_the_last_token_allowed() -> None:
    tokens = ScriptedTokens(script("abcdef"))
    generation = await service(tokens).start(job(stop_strings=("bc",), max_tokens=3))
    deltas = await read(generation)
    assert "".join(d.text for d in deltas) == "a"
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert tokens.cancels == []


async def test_stop_strings_wait_for_min_tokens() -> None:
    tokens = ScriptedTokens(script("a.b.c."))
    sampling = SamplingParams(max_tokens=99, min_tokens=4)
    text, generation = await text_of(tokens, sampling=sampling, stop_strings=(".",))
    assert text == "a.b"
    assert generation.num_completion_tokens == 4


# --- ends that are not normal -----------------------------------------------------------------


async def test_a_cancelled_generation_raises_and_is_counted_once() -> None:
    tokens, metrics = ScriptedTokens(script("abc", pause_at=1)), ServiceMetrics()
    generation = await service(tokens, metrics).start(job())
    assert (await anext(generation)).text == "a"
    reading = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    generation.cancel("client left")
    generation.cancel("again")
    with pytest.raises(RequestCancelled, match="client left"):
        await reading
    with pytest.raises(StopAsyncIteration):
        await anext(generation)
    assert tokens.cancels == [(generation.request_id, "client left")]
    assert sample(metrics, "pdserve_requests_total", outcome="cancelled") == 1
    assert sample(metrics, "pdserve_cancellations_total") == 1
    assert sample(metrics, "pdserve_requests_active") == 0


async def test_cancel_after_the_end_does_nothing() -> None:
    tokens, metrics = ScriptedTokens(script("abc")), ServiceMetrics()
    generation = await service(tokens, metrics).start(job())
    await read(generation)
    generation.cancel("late")
    assert tokens.cancels == []
    assert sample(metrics, "pdserve_requests_total", outcome="stop") == 1


async def test_a_failure_comes_out_as_it_is() -> None:
    tokens = ScriptedTokens(script("abc", fail_at=2, error=RetriesExhausted("tried 3 times")))
    metrics = ServiceMetrics()
    generation = await service(tokens, metrics).start(job())
    texts = []
    with pytest.raises(RetriesExhausted, match="tried 3 times"):
        async for delta in generation:
            texts.append(delta.text)
    assert texts == ["a", "b"]
    assert sample(metrics, "pdserve_requests_total", outcome="failed") == 1
    assert sample(metrics, "pdserve_errors_total", code="retries_exhausted") == 1
    assert sample(metrics, "pdserve_requests_active") == 0


@pytest.mark.parametrize("error", [Overloaded("queue full", 2.0), DeadlineExceeded("too late")])
async def test_refusals_of_the_token_service_are_counted(
    error: Overloaded | DeadlineExceeded,
) -> None:
    tokens, metrics = ScriptedTokens(script("", error=error)), ServiceMetrics()
    with pytest.raises(type(error)):
        await service(tokens, metrics).start(job())
    assert sample(metrics, "pdserve_requests_total", outcome="refused") == 1
    assert sample(metrics, "pdserve_errors_total", code=error.code) == 1


def sample(metrics: ServiceMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


# --- tokens that are there together -----------------------------------------------------------


class AllAtOnce(ScriptedTokens):
    """Every token of the answer is there before the first is read."""

    def start(self, request: Request, **_: object) -> TokenStream:  # type: ignore[override]
        stream = TokenStream(request.request_id, RequestTiming, self._cancelled(request.request_id))
        for index, token_id in enumerate(b"one. two."):
            finish = FinishReason.LENGTH if index == 8 else None
            stream.put(TokenEvent(request.request_id, 1, index, token_id, finish))
        stream.end(None)
        return stream

    def _cancelled(self, request_id: RequestId) -> Callable[[str], None]:
        return lambda reason: self.cancels.append((request_id, reason))


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens", "finish"),
    [((), "one. two.", 9, FinishReason.LENGTH), ((". t",), "one", 6, FinishReason.STOP)],
)
async def test_tokens_that_are_there_come_in_one_piece(
    stop: tuple[str, ...], text: str, num_tokens: int, finish: FinishReason
) -> None:
    generation = await service(AllAtOnce()).start(job(stop_strings=stop))
    (delta,) = await read(generation)
    assert (delta.text, delta.finish_reason) == (text, finish)
    assert len(delta.token_ids) == generation.num_completion_tokens == num_tokens
