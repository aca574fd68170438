"""Several answers by gRPC: told apart by index, the prompt counted once, one failure ends all."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.errors import EngineFailure, InvalidRequest
from pdserve.public import GenerateJob, SamplingOptions, Usage
from pdserve.types import FinishReason
from router.best_answers import WholeAnswer
from router.cluster_view import ClusterStatus
from router.grpc_backend import TextBackend
from router.text_generation import TextService
from router.text_job import TextDelta, seed_of_answer
from support.scripted_tokens import Script, ScriptedTokens, byte_text_model, script

STATUS = ClusterStatus("colocated", "m", (), 0, 0, 0, False)


def backend_of(*scripts: Script) -> tuple[TextBackend, ScriptedTokens]:
    tokens = ScriptedTokens(*scripts)
    return TextBackend(TextService(tokens, byte_text_model()), lambda: STATUS), tokens


async def test_answers_are_told_apart_and_the_prompt_is_counted_once() -> None:
    backend, tokens = backend_of(script("one"), script("two!"))
    stream = await backend.generate(GenerateJob(prompt="Hi", num_answers=2, request_id="mine"))
    texts, ends, usages = {0: "", 1: ""}, [], []
    async for delta in stream:
        texts[delta.answer_index] += delta.text
        if delta.finish_reason is not None:
            ends.append(delta.answer_index)
        usages.append(delta.usage)
    assert texts == {0: "one", 1: "two!"}
    assert sorted(ends) == [0, 1]
    assert usages == [None] * (len(usages) - 1) + [Usage(2, 4 + 5)]
    first, other = tokens.requests
    assert (first.request_id, other.request_id) == ("mine-0", "mine-1")
    assert other.sampling.seed == seed_of_answer(first.sampling.seed, 1)
    assert tokens.follows == [None, first.request_id]
    assert stream.request_id == first.request_id


async def test_the_failure_of_one_ends_all() -> None:
    backend, tokens = backend_of(
        script("abc", pause_at=1), script("abc", fail_at=1, error=EngineFailure("broken"))
    )
    with pytest.raises(EngineFailure):
        async for _ in await backend.generate(GenerateJob(prompt="Hi", num_answers=2)):
            pass
    assert tokens.num_running == 0


async def test_who_cancels_cancels_all() -> None:
    backend, tokens = backend_of(script("abc", pause_at=1))
    before = asyncio.all_tasks()
    stream = await backend.generate(GenerateJob(prompt="Hi", num_answers=3))
    await anext(aiter(stream))
    stream.cancel("enough")
    assert tokens.num_running == 0
    left = asyncio.all_tasks() - before
    await asyncio.gather(*left, return_exceptions=True)
    assert [reason for _, reason in tokens.cancels] == ["enough"] * 3


@pytest.mark.parametrize("count", [0, -1, 129])
async def test_numbers_out_of_range_are_refused(count: int) -> None:
    backend, tokens = backend_of(script("abc"))
    with pytest.raises(InvalidRequest, match=r"num_answers: must lie in \[1, 128\]"):
        await backend.generate(GenerateJob(prompt="Hi", num_answers=count))
    assert not tokens.requests


SCRIPTS = [
    script("mid", logprob=-0.5), script("worst", logprob=-3.0), script("best", logprob=-0.1),
]  # fmt: skip


async def test_the_best_are_told_best_first_and_all_are_counted() -> None:
    backend, tokens = backend_of(*SCRIPTS)
    stream = await backend.generate(GenerateJob(prompt="Hi", num_answers=2, best_of=3))
    found = [delta async for delta in stream]
    assert [(delta.answer_index, delta.text) for delta in found] == [(0, "best"), (1, "mid")]
    assert [delta.logprobs for delta in found] == [(), ()]  # not asked for
    assert [len(delta.token_ids) for delta in found] == [5, 4]
    assert [delta.usage for delta in found] == [None, Usage(2, 4 + 6 + 5)]
    assert {request.sampling.num_logprobs for request in tokens.requests} == {0}


async def test_log_probabilities_that_were_asked_for_are_told() -> None:
    backend, _ = backend_of(*SCRIPTS)
    sampling = SamplingOptions(num_logprobs=0)
    job = GenerateJob(prompt="Hi", best_of=3, sampling=sampling)
    (delta,) = [delta async for delta in await backend.generate(job)]
    assert (delta.text, delta.logprobs[0].chosen.logprob) == ("best", -0.1)


async def test_best_of_as_many_as_are_told_streams_as_ever() -> None:
    backend, tokens = backend_of(script("one", logprob=-3.0), script("two", logprob=-0.1))
    stream = await backend.generate(GenerateJob(prompt="Hi", num_answers=2, best_of=2))
    texts = {0: "", 1: ""}
    async for delta in stream:
        texts[delta.answer_index] += delta.text
    assert texts == {0: "one", 1: "two"}
    assert {request.sampling.num_logprobs for request in tokens.requests} == {None}


def test_a_long_answer_comes_in_pieces() -> None:
    answer = WholeAnswer()
    for number in range(1200):
        answer.add(TextDelta("x", (number,)))
    answer.add(TextDelta("", (7,), finish_reason=FinishReason.STOP))
    pieces = list(answer.pieces())
    assert [len(piece.token_ids) for piece in pieces] == [512, 512, 177]
    assert [piece.finish_reason for piece in pieces] == [None, None, FinishReason.STOP]
    assert "".join(piece.text for piece in pieces) == answer.whole().text == "x" * 1200
    assert sum((piece.token_ids for piece in pieces), ()) == answer.whole().token_ids


async def test_the_failure_of_one_that_is_chosen_from_ends_all() -> None:
    backend, tokens = backend_of(
        script("abc", pause_at=1), script("abc", fail_at=1, error=EngineFailure("broken"))
    )
    with pytest.raises(EngineFailure):
        async for _ in await backend.generate(GenerateJob(prompt="Hi", best_of=2)):
            pass
    assert tokens.num_running == 0


@pytest.mark.parametrize("best_of", [0, 1, 129])
async def test_best_of_out_of_range_is_refused(best_of: int) -> None:
    backend, tokens = backend_of(script("abc"))
    with pytest.raises(InvalidRequest, match=r"best_of: must lie in \[num_answers = 2, 128\]"):
        await backend.generate(GenerateJob(prompt="Hi", num_answers=2, best_of=best_of))
    assert not tokens.requests
