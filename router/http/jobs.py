"""From a decoded request body to a TextJob: defaults, meaning, and refusals by name.

This module does not know sockets, streams or the model's limits (the text service checks those).
Not covered: several answers, several prompts, tools, response formats other than text; each is
refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pdserve.errors import InvalidRequest, UnknownModel
from pdserve.types import MAX_LOGPROBS, RequestId, SamplingParams
from router.chat_template import ChatMessage
from router.http.schemas import ChatRequest, CompletionRequest, GenerationRequest, Message
from router.text_job import MAX_TIMEOUT_S, ChatPrompt, Prompt, TextJob, TextPrompt, TokenPrompt

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
_NO_LIMIT = 2**31 - 1  # stands in for max_tokens until the text service knows the real one
_MAX_ID_DIGITS = 10
_SEED_MASK = 2**63 - 1
_Number = TypeVar("_Number", int, float)
_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How the client wants the answer told."""

    stream: bool
    include_usage: bool
    continuous_usage: bool
    timing: bool


def reply_options(body: GenerationRequest, *, timing_header: bool) -> ReplyOptions:
    options = body.stream_options
    return ReplyOptions(
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        timing=bool(body.pdserve_timing) or timing_header,
    )


def check_model(body: GenerationRequest, served: str) -> None:
    """Raises UnknownModel unless the body names the served model, or none."""
    if body.model is not None and body.model != served:
        raise UnknownModel(f"model: {body.model!r} is not served here, only {served!r}")


def completion_job(body: CompletionRequest, request_id: RequestId) -> TextJob:
    """Raises InvalidRequest naming the field."""
    _refuse_common(body)
    _refuse("echo", body.echo, "is not supported")
    _refuse("suffix", body.suffix, "is not supported")
    _refuse("best_of", body.best_of not in (None, 1), "only 1 is supported")
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    num_logprobs = body.logprobs
    if num_logprobs is not None:
        _check_num_logprobs("logprobs", num_logprobs)
    return _job(body, _prompt(body.prompt), max_tokens, num_logprobs, request_id)


def chat_job(body: ChatRequest, request_id: RequestId) -> TextJob:
    """Raises InvalidRequest naming the field."""
    _refuse_common(body)
    _refuse("tools", body.tools, "are not supported")
    _refuse("functions", body.functions, "are not supported")
    given = body.max_completion_tokens
    max_tokens = body.max_tokens if given is None else given
    messages = tuple(_message(message, i) for i, message in enumerate(body.messages))
    return _job(body, ChatPrompt(messages), max_tokens, _chat_logprobs(body), request_id)


def _job(
    body: GenerationRequest,
    prompt: Prompt,
    max_tokens: int | None,
    num_logprobs: int | None,
    request_id: RequestId,
) -> TextJob:
    if max_tokens is not None and not 1 <= max_tokens <= _NO_LIMIT:
        raise InvalidRequest("max_tokens", f"must lie in [1, {_NO_LIMIT}], not {max_tokens}")
    return TextJob(
        prompt=prompt,
        sampling=_sampling(body, num_logprobs),
        max_tokens=max_tokens,
        seed=_seed(body.seed),
        stop_strings=_stop_strings(body.stop),
        priority=body.priority or 0,
        timeout_s=_timeout_s(body.pdserve_timeout_s),
        request_id=request_id,
    )


def _sampling(body: GenerationRequest, num_logprobs: int | None) -> SamplingParams:
    """OpenAI's defaults where nothing is given: temperature 1, everything else off."""
    return SamplingParams(
        max_tokens=_NO_LIMIT,
        min_tokens=_or(body.min_tokens, 0),
        temperature=_or(body.temperature, 1.0),
        top_k=0 if body.top_k == -1 else _or(body.top_k, 0),  # -1 is "off" to other servers
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=_logit_bias(body.logit_bias or {}),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        num_logprobs=num_logprobs,
    )


def _or(value: _Number | None, default: _Number) -> _Number:
    return default if value is None else value


def _timeout_s(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            "pdserve_timeout_s", f"must lie in (0, {MAX_TIMEOUT_S:g}], not {timeout_s!r}"
        )
    return timeout_s


def _seed(seed: int | None) -> int | None:
    """OpenAI's seeds are signed 64-bit numbers; ours are the lower 63 bits."""
    if seed is None:
        return None
    if not -(2**63) <= seed < 2**63:
        raise InvalidRequest("seed", "must be a 64-bit integer")
    return seed & _SEED_MASK


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _logit_bias(bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) <= _MAX_ID_DIGITS):
            raise InvalidRequest("logit_bias", f"keys are token ids, {key[:40]!r} is none")
    return tuple((int(key), value) for key, value in bias.items())


def _chat_logprobs(body: ChatRequest) -> int | None:
    if not body.logprobs:
        _refuse("top_logprobs", body.top_logprobs, "needs logprobs to be true")
        return None
    num_top = body.top_logprobs or 0
    _check_num_logprobs("top_logprobs", num_top)
    return num_top


def _check_num_logprobs(field: str, num_logprobs: int) -> None:
    """Each endpoint has a name of its own for it."""
    if not 0 <= num_logprobs <= MAX_LOGPROBS:
        raise InvalidRequest(field, f"must lie in [0, {MAX_LOGPROBS}], not {num_logprobs}")


def _prompt(prompt: str | list[int | str | list[int]]) -> Prompt:
    if isinstance(prompt, str):
        return TextPrompt(prompt)
    token_ids = tuple(item for item in prompt if isinstance(item, int))
    if len(token_ids) == len(prompt):
        return TokenPrompt(token_ids)
    if token_ids:
        raise InvalidRequest("prompt", "holds token ids beside texts or lists")
    if len(prompt) > 1:
        raise InvalidRequest(
            "prompt", f"holds {len(prompt)} prompts, only one a request is supported"
        )
    match prompt[0]:
        case str(text):
            return TextPrompt(text)
        case list(only_ids):
            return TokenPrompt(tuple(only_ids))
        case int(token_id):
            return TokenPrompt((token_id,))


def _message(message: Message, index: int) -> ChatMessage:
    if message.role not in _ROLES:
        raise InvalidRequest(
            f"messages[{index}].role", f"must be one of {', '.join(_ROLES)}, not {message.role!r}"
        )
    # "developer" is OpenAI's newer word for "system"; models' templates know the older one.
    role = "system" if message.role == "developer" else message.role
    return ChatMessage(role, _content(message, index), message.name)


def _content(message: Message, index: int) -> str:
    if message.content is None:
        raise InvalidRequest(f"messages[{index}].content", "is required")
    if isinstance(message.content, str):
        return message.content
    texts = []
    for part_index, part in enumerate(message.content):
        path = f"messages[{index}].content[{part_index}]"
        if part.type != "text":
            raise InvalidRequest(f"{path}.type", f"only 'text' is supported, not {part.type!r}")
        if part.text is None:
            raise InvalidRequest(f"{path}.text", "is required")
        texts.append(part.text)
    return "\n".join(texts)


def _refuse_common(body: GenerationRequest) -> None:
    _refuse("n", body.n not in (None, 1), "only 1 is supported")
    wanted = body.response_format
    _refuse("response_format.type", wanted and wanted.type != "text", "only 'text' is supported")


def _refuse(field: str, given: object, problem: str) -> None:
    if given:
        raise InvalidRequest(field, problem)
