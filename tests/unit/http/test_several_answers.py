"""n and best_of: several answers to one prompt, which is encoded and counted once."""

from __future__ import annotations

import pytest

from router.text_job import seed_of_answer
from support.http_face import chunks_of, http_face
from support.scripted_tokens import script


async def test_answers_share_the_prompt_and_draw_from_seeds_of_their_own() -> None:
    async with http_face(script("one"), script("two!"), script("three")) as face:
        body = (await face.complete(n=3, seed=7)).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == [
            (0, "one"), (1, "two!"), (2, "three"),
        ]  # fmt: skip
        assert body["usage"]["prompt_tokens"] == 2
        assert body["usage"]["completion_tokens"] == 4 + 5 + 6
        assert face.count("prompt_tokens_total") == 2
        assert face.count("generated_tokens_total") == 15
        first, *others = face.tokens.requests
        assert first.sampling.seed == 7  # as if it were the only one
        assert [other.sampling.seed for other in others] == [seed_of_answer(7, i) for i in (1, 2)]
        assert face.tokens.follows == [None, first.request_id, first.request_id]
        assert {request.prompt_ids for request in face.tokens.requests} == {(72, 105)}


async def test_a_chat_and_several_prompts_have_several_answers_too() -> None:
    async with http_face(script("x")) as face:
        body = (await face.chat(n=2)).json()
        assert [c["index"] for c in body["choices"]] == [0, 1]
        assert [c["message"]["content"] for c in body["choices"]] == ["x", "x"]
    async with http_face(script("a"), script("b"), script("c"), script("d")) as face:
        body = (await face.complete(prompt=["A", "BC"], n=2, echo=True)).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == [
            (0, "Aa"), (1, "Ab"), (2, "BCc"), (3, "BCd"),
        ]  # fmt: skip
        assert body["usage"]["prompt_tokens"] == 3
        ids = [request.request_id for request in face.tokens.requests]
        assert face.tokens.follows == [None, ids[0], None, ids[2]]


async def test_answers_of_a_stream_are_told_apart_by_index() -> None:
    async with http_face(script("one"), script("two")) as face:
        options = {"include_usage": True}
        chunks = chunks_of(await face.complete(n=2, stream=True, stream_options=options))
        texts = {0: "", 1: ""}
        for chunk in chunks:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == {0: "one", 1: "two"}
        assert chunks[-1]["usage"]["prompt_tokens"] == 2
        assert chunks[-1]["usage"]["completion_tokens"] == 8


async def test_the_ledgers_of_answers_are_named_so() -> None:
    async with http_face(script("x")) as face:
        body = (await face.complete(n=2, pdserve_timing=True)).json()
        assert len(body["pdserve"]["answers"]) == 2


async def test_the_best_are_told_best_first_and_all_are_counted() -> None:
    scripts = [
        script("mid", logprob=-0.5), script("worst", logprob=-3.0), script("best", logprob=-0.1),
    ]  # fmt: skip
    async with http_face(*scripts) as face:
        body = (await face.complete(n=2, best_of=3)).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "best"), (1, "mid")]
        assert [c["logprobs"] for c in body["choices"]] == [None, None]  # not asked for
        assert body["usage"]["completion_tokens"] == 4 + 6 + 5
    async with http_face(*scripts) as face:
        body = (await face.complete(best_of=3, logprobs=0)).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "best")]
        assert body["choices"][0]["logprobs"]["token_logprobs"][0] == -0.1


async def test_best_of_as_many_as_are_told_keeps_their_order() -> None:
    async with http_face(script("one", logprob=-3.0), script("two", logprob=-0.1)) as face:
        body = (await face.complete(n=2, best_of=2, stream=False)).json()
        assert [c["text"] for c in body["choices"]] == ["one", "two"]
        assert {request.sampling.num_logprobs for request in face.tokens.requests} == {None}


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_seeds_are_seeds_and_differ(seed: int) -> None:
    seeds = [seed_of_answer(seed, index) for index in range(128)]
    assert len(set(seeds)) == 128
    assert all(0 <= each < 2**63 for each in seeds)
    assert seeds[0] == seed
