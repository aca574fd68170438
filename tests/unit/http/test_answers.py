"""Whole answers of both endpoints, and what a request's fields mean."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pdserve.request_start import request_start
from pdserve.types import SamplingParams
from support.http_face import CHAT, HELLO, http_face
from support.scripted_tokens import END, script


async def test_a_chat_answer() -> None:
    async with http_face(script("sea 🌊")) as face:
        response = await face.chat(model="byte-model")
        body = response.json()
        assert response.status_code == 200
        assert body["object"] == "chat.completion"
        assert body["id"].startswith("chatcmpl-req-")
        assert body["model"] == "byte-model"
        assert isinstance(body["created"], int)
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "sea 🌊", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert body["usage"] == {
            "prompt_tokens": 1 + len("[user]Hi[assistant]"),
            "completion_tokens": 9,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert "pdserve" not in body


async def test_a_completion_answer_stops_at_sixteen_tokens() -> None:
    async with http_face(script("x" * 40)) as face:
        body = (await face.complete()).json()
        assert body["object"] == "text_completion"
        assert body["id"].startswith("cmpl-")
        assert body["choices"] == [
            {"index": 0, "text": "x" * 16, "logprobs": None, "finish_reason": "length"}
        ]
        assert body["usage"]["total_tokens"] == 18


async def test_defaults_are_openais() -> None:
    async with http_face(script("x")) as face:
        await face.chat()
        sampling = face.tokens.requests[0].sampling
        assert sampling == SamplingParams(temperature=1.0, max_tokens=512 - 20, seed=sampling.seed)


async def test_every_sampling_field_arrives() -> None:
    async with http_face(script("x")) as face:
        response = await face.chat(
            max_tokens=9, max_completion_tokens=5, min_tokens=2, temperature=0, top_p=0.5, top_k=7,
            min_p=0.1, repetition_penalty=1.5, presence_penalty=-1, frequency_penalty=2,
            logit_bias={"65": -100, "66": 1.5}, seed=-1, stop_token_ids=[10], ignore_eos=True,
            logprobs=True, top_logprobs=3, priority=4, pdserve_timeout_s=60,
        )  # fmt: skip
        assert response.status_code == 200, response.text
        request = face.tokens.requests[0]
        assert request.sampling == SamplingParams(
            max_tokens=5, min_tokens=2, temperature=0.0, top_p=0.5, top_k=7, min_p=0.1,
            repetition_penalty=1.5, presence_penalty=-1.0, frequency_penalty=2.0,
            logit_bias=((65, -100.0), (66, 1.5)), seed=2**63 - 1, stop_token_ids=(10,),
            ignore_eos=True, num_logprobs=3,
        )  # fmt: skip
        assert request.priority == 4
        assert request.deadline_s is not None


@pytest.mark.parametrize("stop", ["b", ["zz", "b"]])
async def test_stop_as_string_or_list(stop: str | list[str]) -> None:
    async with http_face(script("aabaa")) as face:
        body = (await face.complete(stop=stop)).json()
        assert body["choices"][0]["text"] == "aa"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("prompt", "prompt_ids"),
    [("AB", (65, 66)), (["AB"], (65, 66)), ([65, END], (65, END)), ([[65, 66]], (65, 66))],
)
async def test_prompts_as_text_or_token_ids(prompt: Any, prompt_ids: tuple[int, ...]) -> None:
    async with http_face(script("x")) as face:
        assert (await face.complete(prompt=prompt)).status_code == 200
        assert face.tokens.requests[0].prompt_ids == prompt_ids


async def test_content_as_parts_and_developer_as_system() -> None:
    messages = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "name": "bot"},
    ]
    async with http_face(script("x")) as face:
        await face.chat(messages=messages)
        ids = face.tokens.requests[0].prompt_ids
        assert bytes(ids[1:]) == b"[system]D[user]a\nb[assistant]c[assistant]"


async def test_unknown_fields_and_nulls_are_tolerated() -> None:
    async with http_face(script("x")) as face:
        response = await face.chat(
            user="u", store=False, metadata={"a": 1}, max_tokens=None, stop=None, tools=[],
            tool_choice="none", response_format={"type": "text"}, n=1, temperature=None,
            stream_options=None, reasoning_effort="low", parallel_tool_calls=True,
        )  # fmt: skip
        assert response.status_code == 200


async def test_chat_logprobs() -> None:
    async with http_face(script("é")) as face:
        body = (await face.chat(logprobs=True, top_logprobs=1)).json()
        entries = body["choices"][0]["logprobs"]["content"]
        top = [{"token": "A", "logprob": -1.0, "bytes": [65]}]
        assert entries[0] == {
            "token": "\ufffd", "logprob": -0.5, "bytes": [0xC3], "top_logprobs": top,
        }  # fmt: skip
        assert [entry["token"] for entry in entries] == ["\ufffd", "\ufffd", "<end>"]
        assert len(entries) == body["usage"]["completion_tokens"]


async def test_completion_logprobs() -> None:
    async with http_face(script("xy")) as face:
        body = (await face.complete(logprobs=2)).json()
        assert body["choices"][0]["logprobs"] == {
            "tokens": ["x", "y", "<end>"],
            "token_logprobs": [-0.5, -0.5, -0.5],
            "top_logprobs": [
                {"A": -1.0, "B": -2.0, chosen: -0.5} for chosen in ("x", "y", "<end>")
            ],
            "text_offset": [0, 1, 2],
        }
        plain = (await face.complete(logprobs=0)).json()
        assert plain["choices"][0]["logprobs"]["top_logprobs"] is None


@pytest.mark.parametrize("by_header", [True, False])
async def test_the_ledger_comes_on_request(by_header: bool) -> None:
    async with http_face(script("x")) as face:
        response = await face.client.post(
            CHAT,
            json={"messages": HELLO, "pdserve_timing": not by_header},
            headers={"x-pdserve-timing": "1"} if by_header else {},
        )
        ledger = response.json()["pdserve"]
        assert ledger["ttft_s"] == 1.75
        assert ledger["kv_bytes"] == 4096
        assert ledger["total_s"] == 9.0  # complete: it was read after the end
        assert ledger["prefill_worker"] == "p0"
        assert ledger["num_generated_tokens"] == 2


@pytest.mark.parametrize("stated", [True, False])
async def test_the_wait_in_front_is_told_as_stated_and_is_in_no_sum(stated: bool) -> None:
    header = request_start(time.time() - 60) if stated else "t=tomorrow"
    async with http_face(script("x")) as face:
        response = await face.client.post(
            CHAT,
            json={"messages": HELLO, "pdserve_timing": True},
            headers={"x-request-start": header},
        )
        ledger = response.json()["pdserve"]
        assert (ledger["before_face_s"] > 59) is stated
        assert (ledger["ttft_s"], ledger["total_s"]) == (1.75, 9.0)


async def test_request_ids_go_in_and_out() -> None:
    async with http_face(script("x")) as face:
        for _ in range(2):
            response = await face.client.post(
                CHAT, json={"messages": HELLO}, headers={"x-request-id": "trace-1"}
            )
            assert response.headers["x-request-id"] == "trace-1"
        first, second = (request.request_id for request in face.tokens.requests)
        assert first.startswith("trace-1-")
        assert first != second  # a client may repeat its ids; inside they are unique


@pytest.mark.parametrize("bad", ["a b", "x" * 97, "ü"])
async def test_unusable_request_ids_are_replaced(bad: str) -> None:
    async with http_face(script("x")) as face:
        response = await face.client.post(
            CHAT, json={"messages": HELLO}, headers={"x-request-id": bad.encode()}
        )
        assert response.headers["x-request-id"] == face.tokens.requests[0].request_id
