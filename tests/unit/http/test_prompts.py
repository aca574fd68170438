"""Several prompts in one request, and prompts that come back before their answers."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import Any

import pytest

from pdserve.errors import EngineFailure, Overloaded
from support.http_face import chunks_of, events_of, http_face
from support.scripted_tokens import BOS, END, script

TOKENS_OF_WOERD = list("wörd".encode())


async def test_several_prompts_are_answered_in_their_order() -> None:
    async with http_face(script("first"), script("2nd"), script("third")) as face:
        body = (await face.complete(prompt=["A", "BC", "DEF"])).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == [
            (0, "first"), (1, "2nd"), (2, "third"),
        ]  # fmt: skip
        assert body["usage"]["prompt_tokens"] == 6
        assert body["usage"]["completion_tokens"] == 6 + 4 + 6
        ids = [request.request_id for request in face.tokens.requests]
        assert [f"cmpl-{name}" for name in ids] == [f"{body['id']}-{i}" for i in range(3)]
        assert len({request.sampling.seed for request in face.tokens.requests}) == 3
        assert face.count("requests_total", outcome="stop") == 3


@pytest.mark.parametrize(
    ("prompt", "prompt_ids"),
    [
        (["AB", "C"], [(65, 66), (67,)]),
        ([[65, END], [66]], [(65, END), (66,)]),
        (["A", [BOS, 66]], [(65,), (BOS, 66)]),
    ],
)
async def test_lists_of_texts_and_of_token_arrays(
    prompt: Any, prompt_ids: list[tuple[int, ...]]
) -> None:
    async with http_face(script("x")) as face:
        assert (await face.complete(prompt=prompt, seed=3)).status_code == 200
        assert [request.prompt_ids for request in face.tokens.requests] == prompt_ids
        assert {request.sampling.seed for request in face.tokens.requests} == {3}


def texts_by_index(chunks: list[dict[str, Any]]) -> dict[int, str]:
    texts: dict[int, str] = defaultdict(str)
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    return dict(texts)


async def test_a_stream_of_several_tells_each_as_it_comes() -> None:
    slow = script("slow", pause_at=1)
    async with http_face(slow, script("quick")) as face:
        sending = asyncio.create_task(
            face.complete(prompt=["A", "B"], stream=True, stream_options={"include_usage": True})
        )
        await face.tokens.ended.wait()  # the quick one, while the slow one waits
        slow.resume.set()
        chunks = chunks_of(await sending)
        assert texts_by_index(chunks) == {0: "slow", 1: "quick"}
        ends = [
            (choice["index"], choice["finish_reason"])
            for chunk in chunks
            for choice in chunk["choices"]
            if choice["finish_reason"]
        ]
        assert ends == [(1, "stop"), (0, "stop")]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 2 + 5 + 6


async def test_one_that_is_refused_refuses_all() -> None:
    refused = script("x", error=Overloaded("queue is full (1)", 1.0))
    async with http_face(script("x", pause_at=0), refused) as face:
        response = await face.complete(prompt=["A", "B"])
        assert response.status_code == 429
        assert [reason for _, reason in face.tokens.cancels] == [
            "another prompt of the same request was refused"
        ]
        assert face.count("requests_total", outcome="refused") == 1


async def test_nothing_is_started_before_all_prompts_are_found_good() -> None:
    async with http_face(script("x")) as face:
        assert (await face.complete(prompt=["A", "B", ""])).status_code == 400
        assert face.tokens.requests == []


@pytest.mark.parametrize("stream", [True, False])
async def test_one_that_fails_ends_all(stream: bool) -> None:
    broken = script("abc", fail_at=0, error=EngineFailure("step failed"))
    async with http_face(script("x", pause_at=0), broken) as face:
        response = await face.complete(prompt=["A", "B"], stream=stream)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "engine_failure"
        assert len(face.tokens.cancels) == 1


async def test_one_that_fails_in_a_stream_ends_it_without_done() -> None:
    waiting = script("ab", pause_at=1)
    broken = script("abc", fail_at=2, error=EngineFailure("step failed"))
    async with http_face(waiting, broken) as face:
        *_, last = events_of(await face.complete(prompt=["A", "B"], stream=True))
        assert json.loads(last)["error"]["code"] == "engine_failure"
        assert len(face.tokens.cancels) == 1


async def test_each_prompt_has_its_ledger() -> None:
    async with http_face(script("x")) as face:
        body = (await face.complete(prompt=["A", "B"], pdserve_timing=True)).json()
        assert [ledger["ttft_s"] for ledger in body["pdserve"]["prompts"]] == [1.75, 1.75]
        chunks = chunks_of(
            await face.complete(prompt=["A", "BC"], pdserve_timing=True, stream=True)
        )
        told = {
            chunk["choices"][0]["index"]: chunk["pdserve"]["num_prompt_tokens"]
            for chunk in chunks
            if "pdserve" in chunk
        }
        assert told == {0: 1, 1: 2}


# --- echo -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("Hi wörd ", ["Hi wörd "]),
        ([BOS, *TOKENS_OF_WOERD], ["<bos>wörd"]),
        (["A", "B"], ["A", "B"]),
        ([[65], TOKENS_OF_WOERD[:2]], ["A", "w\ufffd"]),
    ],
)
async def test_echo_puts_the_prompt_first(prompt: Any, told: list[str]) -> None:
    async with http_face(script("sea")) as face:
        body = (await face.complete(prompt=prompt, echo=True)).json()
        assert [choice["text"] for choice in body["choices"]] == [f"{text}sea" for text in told]
        assert body["usage"]["completion_tokens"] == 4 * len(told)
        chunks = chunks_of(await face.complete(prompt=prompt, echo=True, stream=True))
        assert texts_by_index(chunks) == {i: f"{text}sea" for i, text in enumerate(told)}


async def test_echo_comes_with_the_first_text_and_not_before() -> None:
    async with http_face(script("éa")) as face:
        chunks = chunks_of(await face.complete(echo=True, stream=True))
        assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hié", "a", ""]


async def test_echo_of_an_empty_answer() -> None:
    async with http_face(script("")) as face:
        chunks = chunks_of(await face.complete(echo=True, stream=True))
        assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hi"]
