"""Chat messages to one prompt text, by the model's own Jinja template.

The environment is the one transformers renders templates in (sandboxed and immutable, blocks
trimmed, loop controls, ``{% generation %}``, ``raise_exception``, ``tojson``, ``strftime_now``), so
that templates written for it give the same text. Messages of tools and calls of tools are handed to
the template in the form transformers documents; what comes of them is the template's affair. This
module does not know token ids. Not covered: definitions of tools, documents, content that is not
text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pdserve.errors import InvalidRequest, ModelFileError

# A template is a program of the model's: whatever it stumbles over, the messages are what it was
# given. The sandbox raises OverflowError for loops that are too long.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function that an assistant's turn holds. ``arguments``: a JSON object."""

    call_id: str
    function: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn. Which roles a model knows is its template's affair.

    ``tool_calls`` are an assistant's; ``tool_call_id`` says which of them a tool's turn answers.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


def tool_arguments(text: str, field: str) -> dict[str, Any]:
    """The object that clients send as text, where templates want the object; "" is none.

    Raises:
        InvalidRequest: it is no JSON object (names ``field``).
    """
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, f"must be a JSON object: {error}") from error
    if not isinstance(arguments, dict):
        raise InvalidRequest(field, f"must be a JSON object, not {text[:40]!r}")
    return arguments


class ChatTemplate:
    """A compiled template with the model's special tokens."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        """Raises ModelFileError if the template does not compile."""
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelFileError(f"chat_template.jinja: {error}") from error
        self._special_tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(
        self, messages: tuple[ChatMessage, ...], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt, ending where the assistant's answer begins unless told otherwise.

        Raises:
            InvalidRequest: the template refuses the messages (``messages`` and its own words).
        """
        if not messages:
            raise InvalidRequest("messages", "must hold at least one message")
        try:
            return self._template.render(
                messages=[_as_template_value(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except _TEMPLATE_FAULTS as error:
            raise InvalidRequest("messages", f"refused by the chat template: {error}") from error


def _as_template_value(message: ChatMessage) -> dict[str, Any]:
    """Templates ask whether a key is there, so what was not given has none."""
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        value["name"] = message.name
    if message.tool_calls:
        value["tool_calls"] = [_as_template_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    return value


def _as_template_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function, "arguments": dict(call.arguments)}
    return {"id": call.call_id, "type": "function", "function": function}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for training; here its body is plain."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which would put \\u003c into prompts.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
