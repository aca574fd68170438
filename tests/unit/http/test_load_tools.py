"""aiperf, guidellm and ``vllm bench serve``: what they sent once, and what they read of the answer.

The requests in tests/data/clients were recorded from the tools (benchmarks/scenarios/clients.py,
``--record``); the readers are in support/client_readers.py. The tools themselves are no test
dependencies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.client_readers import READERS, Reading
from support.http_face import Face, http_face
from support.scripted_tokens import END, MODEL_NAME, script

FOLDER = Path(__file__).parents[2] / "data" / "clients"
RECORDINGS = sorted(FOLDER.glob("*.json"))
GENERATING = ("/v1/completions", "/v1/chat/completions")
# 8 tokens, as the tools asked for; one character of two, and one that ends lines for some readers.
ANSWER = "aé\u2028bc"
NUM_TOKENS = len(ANSWER.encode())  # 8


def recorded() -> list[Any]:
    """(tool, request), the model's name changed to that of the tests."""
    found = []
    for file in RECORDINGS:
        document = json.loads(file.read_text(encoding="utf-8"))
        for request in document["requests"]:
            if request["body"] is not None:
                request["body"]["model"] = MODEL_NAME
            tool = document["made_by"].partition("-")[0]
            name = f"{document['made_by']} {request['method']} {request['path']}"
            found.append(pytest.param(tool, request, id=name))
    return found


def generating() -> list[Any]:
    return [each for each in recorded() if each.values[1]["path"] in GENERATING]


async def replay(face: Face, request: dict[str, Any], **changes: Any) -> httpx.Response:
    content = None if request["body"] is None else json.dumps({**request["body"], **changes})
    return await face.client.request(
        request["method"], request["path"], headers=request["headers"], content=content
    )


def test_every_tool_and_endpoint_was_recorded() -> None:
    kinds = {(tool, request["path"]) for tool, request in (each.values for each in generating())}
    assert kinds == {(tool, path) for tool in READERS for path in GENERATING}


@pytest.mark.parametrize(("tool", "request_"), recorded())
async def test_every_request_of_a_tool_is_answered(tool: str, request_: dict[str, Any]) -> None:
    async with http_face(script(ANSWER)) as face:
        response = await replay(face, request_)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(("tool", "request_"), generating())
async def test_what_a_tool_asks_for_is_what_runs(tool: str, request_: dict[str, Any]) -> None:
    async with http_face(script(ANSWER)) as face:
        await replay(face, request_)
        [request] = face.tokens.requests
        body = request_["body"]
        asked = body.get("max_completion_tokens") or body["max_tokens"]
        assert request.sampling.max_tokens == asked == NUM_TOKENS
        assert request.sampling.ignore_eos
        assert request.sampling.min_tokens == body.get("min_tokens", 0)
        given = request_["headers"].get("x-request-id", "req")
        assert request.request_id.startswith(f"{given}-")


@pytest.mark.parametrize(("tool", "request_"), generating())
async def test_what_a_tool_reads_of_the_stream(tool: str, request_: dict[str, Any]) -> None:
    async with http_face(script(ANSWER)) as face:
        response = await replay(face, request_)
        assert response.headers["content-type"].startswith("text/event-stream")
        reading: Reading = READERS[tool](response.content)
        assert reading.text == ANSWER
        assert reading.done
        # the clock of the first token stops at the first event, and that one has text
        assert (reading.first_token_at, reading.first_token_text) == (0, "a")
        assert reading.usage is not None
        assert reading.usage["completion_tokens"] == NUM_TOKENS
        assert reading.usage["prompt_tokens"] == len(face.tokens.requests[0].prompt_ids)
        assert reading.usage["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(("tool", "request_"), generating())
async def test_a_token_without_text_does_not_stop_the_clock(
    tool: str, request_: dict[str, Any]
) -> None:
    async with http_face(script("🌊abcd")) as face:  # the first three tokens make no character
        reading = READERS[tool]((await replay(face, request_)).content)
        assert (reading.first_token_text, reading.num_token_events) == ("🌊", 5)


@pytest.mark.parametrize(("tool", "request_"), generating())
async def test_a_tool_may_leave_out_the_usage(tool: str, request_: dict[str, Any]) -> None:
    async with http_face(script(ANSWER)) as face:
        reading = READERS[tool]((await replay(face, request_, stream_options=None)).content)
        assert (reading.text, reading.usage, reading.done) == (ANSWER, None, True)


async def test_vllm_bench_aligns_its_prompts_with_our_tokenizer() -> None:
    """It sends /tokenize, and /detokenize where the counts differ; it reads these two fields."""
    file = json.loads((FOLDER / "vllm-completions.json").read_text(encoding="utf-8"))
    [request] = [each for each in file["requests"] if each["path"] == "/tokenize"]
    request["body"]["model"] = MODEL_NAME
    async with http_face(script("x")) as face:
        tokens = (await replay(face, request)).json()["tokens"]
        assert bytes(tokens).decode() == request["body"]["prompt"]
        body = {"model": MODEL_NAME, "tokens": [*tokens[:5], END]}
        response = await face.client.post("/detokenize", json=body)
        assert response.json()["prompt"] == bytes(tokens[:5]).decode() + "<end>"


async def test_aiperf_scrapes_metrics() -> None:
    async with http_face(script("abc")) as face:
        await face.chat()
        assert (await face.client.head("/metrics")).status_code == 200
        text = (await face.client.get("/metrics")).text
        families = {family.name for family in text_string_to_metric_families(text)}
        assert {"pdserve_requests", "pdserve_time_to_first_token_seconds"} <= families
