"""Request bodies as OpenAI clients send them, with the extensions other servers have made usual.

Types are checked when a body is decoded; ranges and meaning in jobs.py. Unknown fields are ignored.
None stands for "not given" throughout, since clients send null for that. Fields that are here but
not supported are here to be refused by name (refusals.py): what they ask for would change the
answer.
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


class FunctionCall(msgspec.Struct):
    """``arguments``: a JSON object, as OpenAI has it in a string, or as it is."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(msgspec.Struct):
    function: FunctionCall
    id: str = ""
    type: str = "function"


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Any = None  # refused: OpenAI's older form of tool_calls


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
    cache_salt: str | None = None
    pdserve_timing: bool | None = None
    pdserve_timeout_s: float | None = None
    n: int | None = None
    # refused unless they ask for what is done anyway
    response_format: ResponseFormat | None = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_structural_tag: Any = None
    grammar: Any = None
    regex: Any = None
    json_schema: Any = None
    ebnf: Any = None
    structural_tag: Any = None
    lora_path: Any = None
    logits_processors: Any = None
    custom_logit_processor: Any = None
    stop_regex: Any = None
    return_token_ids: Any = None
    return_hidden_states: Any = None
    kv_transfer_params: Any = None
    length_penalty: float | None = None
    use_beam_search: Any = None
    prompt_logprobs: Any = None
    prompt_embeds: Any = None
    truncate_prompt_tokens: Any = None
    include_stop_str_in_output: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    skip_special_tokens: bool | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    prompt: str | list[int | str | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    # refused unless they ask for what is done anyway
    suffix: str | None = None
    add_special_tokens: bool | None = None


class ChatRequest(GenerationRequest, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    # refused unless they ask for what is done anyway
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    documents: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    continue_final_message: Any = None
    add_generation_prompt: bool | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Exactly one of ``prompt`` and ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]
