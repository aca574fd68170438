"""Roles, names, calls of tools and their answers: what the chat template is given."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from router.chat_template import ChatMessage, ChatTemplate, ToolCall
from router.http.messages import chat_messages
from router.http.schemas import Message
from support.http_face import http_face
from support.scripted_tokens import script

ASK = {"id": "call_1", "type": "function",
       "function": {"name": "weather", "arguments": '{"city": "Köln", "days": 2}'}}  # fmt: skip
TOOL_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?", "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [ASK]},
    {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
]
# In the manner of templates that know tools: keys are asked for, arguments are an object.
TOOL_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}>"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ c.id }}:{{ c.type }}:{{ c.function.name }}({{ c.function.arguments | tojson }})"
    "{% endfor %}{% endif %}{{ m.content }}"
    "{% if 'tool_call_id' in m %} for {{ m.tool_call_id }}{% endif %}{{ '\n' }}{% endfor %}"
)


def parsed(messages: list[dict[str, Any]]) -> tuple[ChatMessage, ...]:
    return chat_messages(msgspec.convert(messages, type=list[Message]))


def test_calls_of_tools_reach_the_template_as_objects() -> None:
    template = ChatTemplate(TOOL_TEMPLATE, bos_token="", eos_token="")
    assert template.render(parsed(TOOL_CHAT)) == (
        "<system>Be brief.\n"
        "<user ann>Weather?\n"
        '<assistant>call_1:function:weather({"city": "Köln", "days": 2})\n'
        "<tool>rain for call_1\n"
    )


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_arguments_as_text_or_object(arguments: Any) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    [message] = parsed([{"role": "assistant", "tool_calls": [call]}])
    assert message == ChatMessage("assistant", "", None, (ToolCall("", "f", {"a": 1}),))


@pytest.mark.parametrize("arguments", ["", "{}"])
def test_a_call_without_arguments(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    [message] = parsed([{"role": "assistant", "content": "so", "tool_calls": [call]}])
    assert message == ChatMessage("assistant", "so", None, (ToolCall("", "f", {}),))


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "function"])
async def test_every_role_reaches_the_template(role: str) -> None:
    async with http_face(script("x")) as face:
        response = await face.chat(messages=[{"role": role, "content": "c", "name": "n"}])
        assert response.status_code == 200, response.text
        prompt_ids = face.tokens.requests[0].prompt_ids
        assert bytes(prompt_ids[1:]) == f"[{role}]c[assistant]".encode()


async def test_a_whole_conversation_with_tools_over_http() -> None:
    async with http_face(script("x")) as face:
        assert (await face.chat(messages=TOOL_CHAT)).status_code == 200
        prompt_ids = face.tokens.requests[0].prompt_ids
        assert b"[assistant][tool]rain[assistant]" in bytes(prompt_ids[1:])


async def test_arguments_nested_too_deeply_are_refused() -> None:
    deep = json.dumps({"a": 1}).replace("1", "[" * 100_000)
    call = {"function": {"name": "f", "arguments": deep}}
    async with http_face(script("x")) as face:
        response = await face.chat(messages=[{"role": "assistant", "tool_calls": [call]}])
        assert response.status_code == 400
        assert response.json()["error"]["param"] == ("messages[0].tool_calls[0].function.arguments")
