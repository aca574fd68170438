"""Trace contexts as clients send them, and the spans a router makes of a request."""

from __future__ import annotations

import sys

import pytest

from pdserve.clock import ManualClock
from pdserve.errors import ConfigError, NoWorkers
from pdserve.otel import open_tracer
from pdserve.request_start import Arrival
from pdserve.tracing import Tracer, TracingConfig, child_of, ids_of, is_sampled, read_context
from pdserve.types import SamplingParams
from router.text_generation import TextService
from router.text_job import TextJob, TextPrompt
from support.scripted_tokens import ScriptedTokens, byte_text_model, script
from support.span_collector import KeptSpans

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "read"),
    [
        (CLIENT, CLIENT),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", CLIENT),  # only one flag is known
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", CLIENT),  # a later version
        (f" {CLIENT} ", CLIENT),
        (f"00-{TRACE}-{SPAN}-01-more", ""),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-{SPAN}-01", ""),
        (f"00-{TRACE[1:]}-{SPAN}-01", ""),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_contexts_are_read_as_the_standard_says(header: str, read: str) -> None:
    assert read_context(header) == read


def test_a_child_is_of_the_same_trace() -> None:
    child = child_of(CLIENT)
    assert read_context(child) == child
    assert ids_of(child)[0] == ids_of(CLIENT)[0]
    assert ids_of(child)[1] != ids_of(CLIENT)[1]


def test_without_a_sink_a_context_is_passed_on_and_none_is_made_up() -> None:
    assert Tracer().begin(CLIENT) == CLIENT
    assert Tracer().begin("") == ""
    assert not Tracer().traces(CLIENT)


@pytest.mark.parametrize(("share", "sampled"), [(1.0, True), (0.0, False)])
def test_new_traces_are_sampled_by_their_share(share: float, sampled: bool) -> None:
    tracer = Tracer(KeptSpans(), share=share)
    assert is_sampled(tracer.begin("")) is sampled
    assert is_sampled(tracer.begin(CLIENT))  # the client has decided
    assert not is_sampled(tracer.begin(f"00-{TRACE}-{SPAN}-00"))


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint must be like"):
        open_tracer(TracingConfig(otlp_endpoint="collector:4317"), ManualClock(0.0), "test")


def test_without_the_extra_an_endpoint_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    config = TracingConfig(otlp_endpoint="http://127.0.0.1:4318/v1/traces")
    with pytest.raises(ConfigError, match="needs the extra 'otel'") as refusal:
        open_tracer(config, ManualClock(0.0), "test")
    assert "pip install 'pdserve[otel]'" in refusal.value.next_step


async def test_a_request_becomes_spans_that_follow_on_each_other() -> None:
    kept, clock, tokens = KeptSpans(), ManualClock(100.0), ScriptedTokens(script("abc"))
    service = TextService(tokens, byte_text_model(), clock=clock, tracer=Tracer(kept))
    generation = await service.start(job(), arrival=Arrival(0.5, 2.0))
    async for _ in generation:
        clock.advance(4.0)
        generation.first_piece_sent()
    root, before, *parts = kept.spans
    assert (before.name, before.parent) == ("router.before_face", root.context)
    assert (before.start_s, before.end_s) == (97.5, 99.5)
    assert before.attributes == {"pdserve.stated_by": "sender"}
    assert (root.name, root.parent, root.serves, root.error) == ("request", CLIENT, True, "")
    assert root.start_s == 99.5
    assert root.context == tokens.requests[0].traceparent  # what workers put theirs under
    assert root.attributes["gen_ai.usage.output_tokens"] == 4
    assert {part.parent for part in parts} == {root.context}
    assert [part.name for part in parts] == [
        "router.receive", "router.tokenize", "router.queue", "router.prefill",
        "router.first_token_send", "router.decode",
    ]  # fmt: skip
    following = [part for part in parts if part.name != "router.decode"]
    assert following[0].start_s == root.start_s
    for before, part in zip(following, following[1:], strict=False):
        assert part.start_s == pytest.approx(before.end_s)


async def test_a_failure_is_on_the_span() -> None:
    kept = KeptSpans()
    tokens = ScriptedTokens(script("abc", fail_at=0, error=NoWorkers("none")))
    service = TextService(tokens, byte_text_model(), tracer=Tracer(kept))
    with pytest.raises(NoWorkers):
        async for _ in await service.start(job()):
            pass
    assert kept.spans[0].error == "no_workers"
    assert "router.prefill" not in {span.name for span in kept.spans}


async def test_what_is_not_sampled_makes_no_span() -> None:
    kept = KeptSpans()
    service = TextService(
        ScriptedTokens(script("abc")), byte_text_model(), tracer=Tracer(kept, share=0.0)
    )
    async for _ in await service.start(job(traceparent="")):
        pass
    assert not kept.spans


def job(traceparent: str = CLIENT) -> TextJob:
    return TextJob(
        prompt=TextPrompt("Hi"), sampling=SamplingParams(max_tokens=99), max_tokens=9, seed=1,
        traceparent=traceparent,
    )  # fmt: skip
