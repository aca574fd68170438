"""The values of the public face survive their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdserve.errors import InvalidRequest, ProtocolError
from pdserve.public import (
    ChatMessage,
    ClusterStatusView,
    GenerateDelta,
    GenerateJob,
    SamplingOptions,
    ToolCall,
)
from pdserve.rpc import codec_public
from pdserve.types import ModelInfo
from pdserve.v1 import inference_service_pb2 as pb
from support.message_strategies import strategy_of

ANY_INT = st.integers(-(2**63), 2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=128)
TURNS = st.builds(
    ChatMessage,
    TEXT,
    TEXT,
    st.none() | TEXT,
    st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=2).map(tuple),
    st.none() | TEXT,
)
PROMPTS = st.one_of(
    st.fixed_dictionaries({"prompt": TEXT}),
    st.fixed_dictionaries({"prompt_ids": st.lists(ANY_INT, max_size=5).map(tuple)}),
    st.fixed_dictionaries({"messages": st.lists(TURNS, max_size=3).map(tuple)}),
)


def _optional(kind: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | kind


SAMPLING = st.builds(
    SamplingOptions,
    **{
        name: _optional(ANY_INT)
        for name in ("max_tokens", "min_tokens", "top_k", "seed", "num_logprobs")
    },
    **{
        name: _optional(st.floats(allow_nan=False))
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
    },
    logit_bias=st.lists(st.tuples(ANY_INT, FINITE), max_size=3).map(tuple),
    stop_token_ids=st.lists(ANY_INT, max_size=3).map(tuple),
    ignore_eos=_optional(st.booleans()),
)


@st.composite
def jobs(draw: st.DrawFn) -> GenerateJob:
    return GenerateJob(
        **draw(PROMPTS),
        sampling=draw(SAMPLING),
        stop=tuple(draw(st.lists(TEXT, max_size=3))),
        model=draw(TEXT),
        request_id=draw(PRINTABLE),
        priority=draw(ANY_INT),
        timeout_s=draw(_optional(FINITE)),
        num_answers=draw(ANY_INT),
        best_of=draw(_optional(ANY_INT)),
    )


@given(jobs())
@settings(max_examples=300, deadline=None)
def test_a_job_survives(job: GenerateJob) -> None:
    assert codec_public.decode_job(codec_public.encode_job(job).SerializeToString()) == job


@given(strategy_of(GenerateDelta))
@settings(deadline=None)
def test_a_delta_survives(delta: GenerateDelta) -> None:
    data = codec_public.encode_delta(delta).SerializeToString()
    message = codec_public.parse_response(pb.GenerateResponse, data)
    assert codec_public.decode_delta(message) == delta


@given(strategy_of(ClusterStatusView))
@settings(deadline=None)
def test_a_status_survives(view: ClusterStatusView) -> None:
    data = codec_public.encode_status(view).SerializeToString()
    message = codec_public.parse_response(pb.ClusterStatusResponse, data)
    assert codec_public.decode_status(message) == view


@given(st.lists(strategy_of(ModelInfo), max_size=3).map(tuple))
@settings(deadline=None)
def test_models_survive(models: tuple[ModelInfo, ...]) -> None:
    assert codec_public.decode_models(codec_public.encode_models(models)) == models


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_job_or_bad_input(data: bytes) -> None:
    try:
        codec_public.decode_job(data)
    except InvalidRequest:
        return


@pytest.mark.parametrize(
    "job",
    [
        GenerateJob(prompt_ids=(2**63,)),
        GenerateJob(prompt_ids=("a",)),  # type: ignore[arg-type]
        GenerateJob(prompt="\ud800"),
        GenerateJob(prompt="Hi", sampling=SamplingOptions(temperature="hot")),  # type: ignore
    ],
    ids=["too large", "text as id", "surrogate", "text as number"],
)
def test_what_has_no_bytes_is_bad_input(job: GenerateJob) -> None:
    with pytest.raises(InvalidRequest):
        codec_public.encode_job(job)


def test_a_broken_response_is_the_servers_fault() -> None:
    with pytest.raises(ProtocolError, match="GenerateResponse"):
        codec_public.parse_response(pb.GenerateResponse, b"\xff")
    with pytest.raises(ProtocolError, match="finish_reason: unknown value 9"):
        codec_public.decode_delta(pb.GenerateResponse(finish_reason=9))
    with pytest.raises(ProtocolError, match="model: missing"):
        codec_public.decode_status(pb.ClusterStatusResponse())
