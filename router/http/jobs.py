"""From a decoded request body to its TextJobs, one for each prompt: defaults and meaning.

This module does not know sockets, streams or the model's limits (the text service checks those).
Not covered: tools, response formats other than text; each is refused by name (refusals.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar, cast

from pdserve.errors import InvalidRequest, UnknownModel
from pdserve.types import MAX_LOGPROBS, RequestId, SamplingParams
from router.http.messages import chat_messages
from router.http.refusals import check_chat, check_completion, refuse
from router.http.schemas import ChatRequest, CompletionRequest, GenerationRequest
from router.text_job import (
    MAX_ANSWERS,
    MAX_TIMEOUT_S,
    ChatPrompt,
    Prompt,
    TextJob,
    TextPrompt,
    TokenPrompt,
    answer_id,
    check_best_of,
    check_num_answers,
    to_choose_by,
)

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 128  # of one request
_NO_LIMIT = 2**31 - 1  # stands in for max_tokens until the text service knows the real one
_MAX_ID_DIGITS = 10
_SEED_MASK = 2**63 - 1
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How the client wants the answer told. ``num_answers``: to each prompt."""

    stream: bool
    include_usage: bool
    continuous_usage: bool
    timing: bool
    num_answers: int = 1


def reply_options(body: GenerationRequest, *, timing_header: bool) -> ReplyOptions:
    options = body.stream_options
    return ReplyOptions(
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        timing=bool(body.pdserve_timing) or timing_header,
        num_answers=_num_told(body),
    )


def check_model(named: str | None, served: str) -> None:
    """Raises UnknownModel unless the body names the served model, or none."""
    if named is not None and named != served:
        raise UnknownModel(f"model: {named!r} is not served here, only {served!r}")


def completion_jobs(body: CompletionRequest, request_id: RequestId) -> tuple[TextJob, ...]:
    """One for each prompt, in order. Raises InvalidRequest naming the field."""
    check_completion(body)
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    num_logprobs = body.logprobs
    if num_logprobs is not None:
        _check_num_logprobs("logprobs", num_logprobs)
    prompts = _prompts(body.prompt)
    num_answers = _num_computed(body)
    num_logprobs = to_choose_by(num_logprobs, num_answers, _num_told(body))
    first = _job(body, prompts[0], max_tokens, num_logprobs, request_id)
    if len(prompts) > 1:
        jobs = [replace(first, prompt=prompt, prompt_index=i) for i, prompt in enumerate(prompts)]
    else:
        jobs = [first]
    return _with_answers(jobs, num_answers)


def chat_jobs(body: ChatRequest, request_id: RequestId) -> tuple[TextJob, ...]:
    """Exactly one. Raises InvalidRequest naming the field."""
    check_chat(body)
    given = body.max_completion_tokens
    max_tokens = body.max_tokens if given is None else given
    prompt = ChatPrompt(chat_messages(body.messages))
    job = _job(body, prompt, max_tokens, _chat_logprobs(body), request_id)
    return _with_answers([job], _num_told(body))


def _num_told(body: GenerationRequest) -> int:
    """Answers to each prompt that the client gets."""
    num_answers = 1 if body.n is None else body.n
    check_num_answers("n", num_answers)
    return num_answers


def _num_computed(body: CompletionRequest) -> int:
    """Answers to each prompt that are generated, for the best of them to be told."""
    num_told = _num_told(body)
    num_answers = check_best_of(body.best_of, num_told, "n")
    refuse("best_of", bool(body.stream) and num_answers > num_told,
           "above n cannot be streamed: the best are known at the end")  # fmt: skip
    return num_answers


def _with_answers(jobs: list[TextJob], num_answers: int) -> tuple[TextJob, ...]:
    """``num_answers`` to each, side by side, each with an id of its own where there are several."""
    if len(jobs) * num_answers > MAX_ANSWERS:
        raise InvalidRequest(
            "n", f"{num_answers} answers to each of {len(jobs)} prompts are more than {MAX_ANSWERS}"
        )
    if len(jobs) * num_answers == 1:
        return tuple(jobs)
    answers = [replace(job, answer_index=j) for job in jobs for j in range(num_answers)]
    return tuple(
        replace(job, request_id=answer_id(job.request_id, i)) for i, job in enumerate(answers)
    )


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
        cache_salt=_cache_salt(body.cache_salt),
    )


def _cache_salt(salt: str | None) -> str:
    """An empty one is refused: whoever sends it means to be alone and would not be."""
    if salt == "":
        raise InvalidRequest("cache_salt", "must not be empty")
    return salt or ""


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
        refuse("top_logprobs", bool(body.top_logprobs), "needs logprobs to be true")
        return None
    num_top = body.top_logprobs or 0
    _check_num_logprobs("top_logprobs", num_top)
    return num_top


def _check_num_logprobs(field: str, num_logprobs: int) -> None:
    """Each endpoint has a name of its own for it."""
    if not 0 <= num_logprobs <= MAX_LOGPROBS:
        raise InvalidRequest(field, f"must lie in [0, {MAX_LOGPROBS}], not {num_logprobs}")


def _prompts(prompt: str | list[int | str | list[int]]) -> list[Prompt]:
    """One text, one list of token ids, or a list of either kind."""
    if isinstance(prompt, str):
        return [TextPrompt(prompt)]
    kinds = set(map(type, prompt))
    if kinds <= {int}:
        return [TokenPrompt(tuple(cast(list[int], prompt)))]
    if int in kinds:
        raise InvalidRequest("prompt", "holds token ids beside texts or lists")
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest("prompt", f"holds {len(prompt)} prompts, the limit is {MAX_PROMPTS}")
    return [_several(item) for item in prompt]


def _several(item: int | str | list[int]) -> Prompt:
    match item:
        case str(text):
            return TextPrompt(text)
        case list(token_ids):
            return TokenPrompt(tuple(token_ids))
        case int(token_id):
            return TokenPrompt((token_id,))
