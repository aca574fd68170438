"""Bad requests change nothing and are told the field and the limit, in OpenAI's error body."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.errors import Overloaded, ShuttingDown
from router.http.config import HttpConfig
from support.http_face import CHAT, COMPLETIONS, HELLO, http_face
from support.scripted_tokens import script

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": None}, "messages", "expected `array`, got `null`"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "Hi"}, "messages", "expected `array`, got `str`"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "is required"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content", "got `int`"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'robot'"),
        ({"messages": [{"role": "tool"}]}, "messages[0].content", "is required"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
            "messages[0].tool_calls", "only an assistant's",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"type": "function"}]}]},
            "messages[0].tool_calls[0].function", "is required",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}]},
            "messages[0].tool_calls[0].type", "only 'function'",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": "[1]"}}
            ]}]},
            "messages[0].tool_calls[0].function.arguments", "must be a JSON object",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]},
            "messages[0].function_call", "send tool_calls",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type", "only 'text' is supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text", "is required",
        ),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages", "system comes"),
        ({"max_tokens": "9"}, "max_tokens", "expected `int | null`, got `str`"),
        ({"max_tokens": 1.5}, "max_tokens", "got `float`"),
        ({"max_tokens": 0}, "max_tokens", "must lie in [1, 2147483647], not 0"),
        ({"max_tokens": 10**30}, "max_tokens", "must lie in"),
        ({"max_tokens": 510}, "max_tokens", "are 530, more than the context of 512"),
        ({"temperature": -0.5}, "temperature", "must lie in [0, 100]"),
        ({"temperature": "hot"}, "temperature", "got `str`"),
        ({"top_p": 0}, "top_p", "must lie in (0, 1]"),
        ({"top_k": -2}, "top_k", "must lie in"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "must lie in [0, 3]"),
        ({"presence_penalty": 3}, "presence_penalty", "must lie in [-2, 2]"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "keys are token ids"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "token id 999 is outside [0, 259)"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[...]", "got `str`"),
        ({"seed": 2**63}, "seed", "64-bit"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 strings"),
        ({"stop": ["a", ""]}, "stop[1]", "1 to 256 characters"),
        ({"stop": [1]}, "stop[0]", "got `int`"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "token id -1"),
        ({"stream": "yes"}, "stream", "got `str`"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "got `int`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "must lie in [0, 20]"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"n": 0}, "n", "must lie in [1, 128], not 0"),
        ({"n": 129}, "n", "must lie in [1, 128], not 129"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "only 'none' and 'auto'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "only 'none' and 'auto'"),
        ({"function_call": {"name": "f"}}, "function_call", "only 'none' and 'auto'"),
        ({"modalities": ["text", "audio"]}, "modalities", "only 'text'"),
        ({"audio": {"voice": "x"}}, "audio", "answers are text"),
        ({"chat_template": "x"}, "chat_template", "the model's own"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "not supported"),
        ({"continue_final_message": True}, "continue_final_message", "a new message"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "only true"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "only 'text'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.type", "not 'json_schema'",
        ),
        ({"guided_json": {"type": "object"}}, "guided_json", "free text only"),
        ({"guided_choice": ["a", "b"]}, "guided_choice", "free text only"),
        ({"structured_outputs": {"regex": "x"}}, "structured_outputs", "free text only"),
        ({"prompt_logprobs": 0}, "prompt_logprobs", "only generated tokens"),
        ({"use_beam_search": True}, "use_beam_search", "are sampled"),
        ({"regex": "a+"}, "regex", "free text only"),
        ({"json_schema": "{}"}, "json_schema", "free text only"),
        ({"ebnf": "root ::= 'a'"}, "ebnf", "free text only"),
        ({"structural_tag": "{}"}, "structural_tag", "free text only"),
        ({"guided_structural_tag": "x"}, "guided_structural_tag", "free text only"),
        ({"lora_path": "/x"}, "lora_path", "as it is"),
        ({"logits_processors": ["x"]}, "logits_processors", "logit_bias"),
        ({"custom_logit_processor": "x"}, "custom_logit_processor", "logit_bias"),
        ({"stop_regex": "x"}, "stop_regex", "takes strings"),
        ({"return_token_ids": True}, "return_token_ids", "/tokenize"),
        ({"return_hidden_states": True}, "return_hidden_states", "not supported"),
        ({"kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params", "places KV"),
        ({"length_penalty": 1.2}, "length_penalty", "only 1"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "is refused"),
        ({"skip_special_tokens": False}, "skip_special_tokens", "only true"),
        ({"pdserve_timeout_s": 0}, "pdserve_timeout_s", "must lie in"),
        ({"priority": 10**12}, "priority", "must lie in"),
    ],
)  # fmt: skip
async def test_chat_refusals(fields: dict[str, Any], param: str, message: str) -> None:
    async with http_face(script("x")) as face:
        response = await face.chat(**fields)
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["param"] == param
        assert error["message"].startswith(f"{param}: ")
        assert message in error["message"]
        assert error["type"] == "invalid_request_error"
        assert face.tokens.requests == []
        assert face.count("requests_total", outcome="refused") == 1


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": []}, "prompt", "at least one token"),
        ({"prompt": None}, "prompt", "got `null`"),
        ({"prompt": [65, "a"]}, "prompt", "beside"),
        ({"prompt": [65, 1.5]}, "prompt[1]", "got `float`"),
        ({"prompt": ["a"] * 129}, "prompt", "holds 129 prompts, the limit is 128"),
        ({"prompt": ["a", ""]}, "prompt[1]", "must not be empty"),
        ({"prompt": [[1], [2], []]}, "prompt[2]", "at least one token"),
        ({"prompt": [[1], [2, -1]]}, "prompt[1]", "token id -1"),
        ({"prompt": ["a", "x" * 600]}, "prompt[1]", "600 tokens leave no room"),
        ({"prompt": [65, 259]}, "prompt", "token id 259 is outside [0, 259)"),
        ({"prompt": [10**30]}, "prompt", "outside [0, 259)"),
        ({"prompt": "x" * 600}, "prompt", "600 tokens leave no room"),
        ({"echo": True, "logprobs": 0}, "logprobs", "together with echo"),
        ({"suffix": "x"}, "suffix", "only ever continued"),
        ({"add_special_tokens": False}, "add_special_tokens", "as token ids"),
        ({"best_of": 2, "n": 3}, "best_of", "must lie in [n = 3, 128], not 2"),
        ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
        ({"n": 65, "prompt": ["a", "b"]}, "n", "more than 128"),
        ({"logprobs": 21}, "logprobs", "must lie in [0, 20]"),
        ({"logprobs": True}, "logprobs", "got `bool`"),
    ],
)
async def test_completion_refusals(fields: dict[str, Any], param: str, message: str) -> None:
    async with http_face(script("x")) as face:
        response = await face.complete(**fields)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert message in response.json()["error"]["message"]
        assert face.tokens.requests == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: is not valid JSON"),
        (b"{", "body: is not valid JSON"),
        (b"[]", "body: expected `object`, got `array`"),
        (b'{"prompt": "\xff\xfe"}', "body: is not valid UTF-8"),
        (b'{"prompt": "\\ud800 alone"}', "body: is not valid JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "body: is not valid JSON"),
        (b'{"x": ' + b"[" * 100_000, "body: is n"),
        (b"{}", "prompt: is required"),
    ],
)
async def test_bodies_that_are_no_request(body: bytes, message: str) -> None:
    async with http_face(script("x")) as face:
        response = await face.client.post(COMPLETIONS, content=body)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(message)
        assert face.count("errors_total", code="invalid_request") == 1


async def test_another_model_is_not_found() -> None:
    async with http_face(script("x")) as face:
        response = await face.chat(model="gpt-4")
        assert response.status_code == 404
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "'gpt-4'" in error["message"]
        assert "'byte-model'" in error["message"]


async def test_overload_says_when_to_come_back() -> None:
    async with http_face(script("x", error=Overloaded("queue is full (1024)", 1.2))) as face:
        response = await face.chat(stream=True)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "2"
        assert response.headers["x-request-id"]
        assert response.json()["error"]["type"] == "rate_limit_error"


async def test_a_draining_service_refuses() -> None:
    async with http_face(script("x", error=ShuttingDown("the router drains"))) as face:
        assert (await face.chat()).status_code == 503


async def test_a_body_over_the_limit_is_not_read() -> None:
    async with http_face(script("x"), config=HttpConfig(max_body_bytes=1024)) as face:
        response = await face.client.post(CHAT, content=b"x" * 1025)
        assert response.status_code == 413
        assert response.headers["connection"] == "close"
        assert "1025 bytes, the limit is 1024" in response.json()["error"]["message"]


async def test_chunks_over_the_limit_are_not_read_on() -> None:
    num_read = 0

    async def chunks():  # type: ignore[no-untyped-def]
        nonlocal num_read
        for _ in range(100):
            num_read += 1
            yield b"x" * 512

    config = HttpConfig(max_body_bytes=1024, max_linger_bytes=2048)
    async with http_face(script("x"), config=config) as face:
        response = await face.client.post(CHAT, content=chunks())
        assert response.status_code == 413
        assert num_read == 3 + 4  # as much as the limit wants, and the lingering
        assert face.count("errors_total", code="payload_too_large") == 1


async def test_a_bug_is_an_openai_error_too() -> None:
    async with http_face(script("abc", fail_at=0, error=None)) as face:
        face.tokens.start = None  # type: ignore[assignment, method-assign]
        response = await face.client.post(CHAT, json={"messages": HELLO})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"


async def test_wrong_paths_and_methods() -> None:
    async with http_face(script("x")) as face:
        missing = await face.client.get("/v1/embeddings")
        assert missing.status_code == 404
        assert missing.json()["error"]["message"] == "Not Found: GET /v1/embeddings"
        assert missing.json()["error"]["code"] == "not_found"
        wrong_method = await face.client.get(CHAT)
        assert wrong_method.status_code == 405
        assert wrong_method.headers["allow"] == "POST"
        assert wrong_method.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": None, "json_schema": "", "lora_path": None, "length_penalty": 1.0},
        {"tools": [], "logits_processors": [], "return_token_ids": False},
        {"kv_transfer_params": {}, "use_beam_search": False, "no_such_field": 5, "user": "x"},
    ],
)
async def test_neutral_values_and_unknown_fields_change_nothing(fields: dict[str, Any]) -> None:
    async with http_face(script("x")) as face:
        assert (await face.chat(**fields)).status_code == 200


@pytest.mark.parametrize("fields", [{"prompt": "x" * 600}, {"prompt": "x", "max_tokens": 512}])
async def test_what_is_over_the_context_has_openais_code(fields: dict[str, Any]) -> None:
    async with http_face(script("x")) as face:
        response = await face.complete(**fields)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert face.count("errors_total", code="context_length_exceeded") == 1
