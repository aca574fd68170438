"""Request bodies as OpenAI clients send them, with the extensions other servers have made usual.

Types are checked when a body is decoded; ranges and meaning in jobs.py. Unknown fields are ignored.
None stands for "not given" throughout, since clients send null for that. Fields that are here but
not supported are here to be refused by name.
"""

from __future__ import annotations

from typing import Any

import msgspec


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None


class GenerationRequest(msgspec.Struct, kw_only=True):
    """What both endpoints take."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    pdserve_timing: bool | None = None
    pdserve_timeout_s: float | None = None
    # refused unless they ask for what is done anyway
    n: int | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    prompt: str | list[int | str | list[int]]
    logprobs: int | None = None
    # refused unless they ask for what is done anyway
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class ChatRequest(GenerationRequest, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    # refused unless they ask for what is done anyway
    tools: list[Any] | None = None
    functions: list[Any] | None = None
