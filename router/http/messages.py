"""Messages of a chat as clients send them, to those the model's template is given.

Every role OpenAI knows is taken; which of them a model knows is for its template to say. Not
covered: content that is not text; each kind is refused by name.
"""

from __future__ import annotations

from pdserve.errors import InvalidRequest
from router.chat_template import ChatMessage, ToolCall, tool_arguments
from router.http.schemas import Message
from router.http.schemas import ToolCall as ToolCallBody

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def chat_messages(messages: list[Message]) -> tuple[ChatMessage, ...]:
    """Raises InvalidRequest with the path of the field: ``messages[0].content``."""
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _message(message: Message, path: str) -> ChatMessage:
    if message.role not in _ROLES:
        raise InvalidRequest(
            f"{path}.role", f"must be one of {', '.join(_ROLES)}, not {message.role!r}"
        )
    if message.function_call is not None:
        raise InvalidRequest(f"{path}.function_call", "is not supported; send tool_calls")
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(f"{path}.tool_calls", "only an assistant's message may hold them")
    calls = tuple(
        _tool_call(call, f"{path}.tool_calls[{i}]")
        for i, call in enumerate(message.tool_calls or ())
    )
    # "developer" is OpenAI's newer word for "system"; models' templates know the older one.
    role = "system" if message.role == "developer" else message.role
    # A message that only calls tools has no content; templates expect a text all the same.
    content = "" if message.content is None and calls else _content(message, path)
    return ChatMessage(role, content, message.name, calls, message.tool_call_id)


def _content(message: Message, path: str) -> str:
    if message.content is None:
        raise InvalidRequest(f"{path}.content", "is required")
    if isinstance(message.content, str):
        return message.content
    texts = []
    for index, part in enumerate(message.content):
        part_path = f"{path}.content[{index}]"
        if part.type != "text":
            raise InvalidRequest(
                f"{part_path}.type", f"only 'text' is supported, not {part.type!r}"
            )
        if part.text is None:
            raise InvalidRequest(f"{part_path}.text", "is required")
        texts.append(part.text)
    return "\n".join(texts)


def _tool_call(call: ToolCallBody, path: str) -> ToolCall:
    if call.type != "function":
        raise InvalidRequest(f"{path}.type", f"only 'function' is supported, not {call.type!r}")
    arguments = call.function.arguments
    if isinstance(arguments, str):
        arguments = tool_arguments(arguments, f"{path}.function.arguments")
    return ToolCall(call.id, call.function.name, arguments)
