"""The text service as the public gRPC face sees it: an ``InferenceBackend`` (pdserve/public.py).

Translates values both ways and fills in the defaults, which are those of the HTTP face: temperature
1, everything else off, the rest of the context as limit. This module does not know gRPC (the face
is pdserve/rpc/inference_server.py) and judges no ranges; TextService and SamplingParams do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from pdserve.errors import UnknownModel
from pdserve.public import ChatMessage as PublicMessage
from pdserve.public import (
    ClusterStatusView,
    GenerateDelta,
    GenerateJob,
    RequestRecord,
    SampledToken,
    SamplingOptions,
    TokenText,
    Usage,
    WorkerView,
)
from pdserve.types import ModelInfo, RequestId, RequestTiming, SamplingParams
from router.chat_template import ChatMessage, ToolCall, tool_arguments
from router.cluster_view import ClusterStatus, WorkerEntry
from router.recent_requests import RecentRequests
from router.text_generation import TextGeneration, TextService
from router.text_job import ChatPrompt, Prompt, TextDelta, TextJob, TextPrompt, TokenPrompt
from router.text_job import TokenText as RouterTokenText

_NO_LIMIT = 2**31 - 1  # stands in for max_tokens until the text service knows the real one
_NumberT = TypeVar("_NumberT", int, float)


class TextStream:
    """One generation; satisfies ``GenerationStream``."""

    def __init__(self, generation: TextGeneration) -> None:
        self._generation = generation

    @property
    def request_id(self) -> str:
        return self._generation.request_id

    @property
    def timing(self) -> RequestTiming:
        return self._generation.timing

    def first_piece_sent(self) -> None:
        self._generation.first_piece_sent()

    def cancel(self, reason: str) -> None:
        self._generation.cancel(reason)

    def __aiter__(self) -> AsyncIterator[GenerateDelta]:
        return self

    async def __anext__(self) -> GenerateDelta:
        return self._public_delta(await anext(self._generation))

    def _public_delta(self, delta: TextDelta) -> GenerateDelta:
        usage = None
        if delta.finish_reason is not None:
            usage = Usage(
                self._generation.num_prompt_tokens,
                self._generation.num_completion_tokens,
                self._generation.num_cached_tokens,
            )
        return GenerateDelta(
            text=delta.text,
            token_ids=delta.token_ids,
            logprobs=tuple(
                SampledToken(_token(each.chosen), tuple(_token(top) for top in each.top))
                for each in delta.logprobs
            ),
            finish_reason=delta.finish_reason,
            usage=usage,
        )


class TextBackend:
    """Satisfies ``InferenceBackend``."""

    def __init__(
        self,
        service: TextService,
        status: Callable[[], ClusterStatus],
        recent: RecentRequests | None = None,
    ) -> None:
        """``status`` gives a snapshot of the cluster whenever it is called."""
        self._service = service
        self._status = status
        self._recent = RecentRequests(0) if recent is None else recent

    async def generate(self, job: GenerateJob, *, receive_s: float = 0.0) -> TextStream:
        """Raises UnknownModel, and what TextService.start raises."""
        served = self._service.model.name
        if job.model not in ("", served):
            raise UnknownModel(f"model: {job.model!r} is not served here, only {served!r}")
        return TextStream(await self._service.start(_text_job(job), receive_s=receive_s))

    def models(self) -> tuple[ModelInfo, ...]:
        return (self._service.model,)

    def request_record(self, request_id: str) -> RequestRecord:
        """Raises UnknownRequest."""
        return self._recent.find(request_id)

    def cluster_status(self) -> ClusterStatusView:
        status = self._status()
        return ClusterStatusView(
            can_serve=status.can_serve(),
            mode=status.mode,
            model=self._service.model,
            workers=tuple(_worker(worker) for worker in status.workers),
            num_queued=status.queue_len,
            num_in_flight=status.num_in_flight,
            num_tickets=status.num_tickets,
            draining=status.draining,
        )


def _text_job(job: GenerateJob) -> TextJob:
    return TextJob(
        prompt=_prompt(job),
        sampling=_sampling(job.sampling),
        max_tokens=job.sampling.max_tokens,
        seed=job.sampling.seed,
        stop_strings=job.stop,
        priority=job.priority,
        timeout_s=job.timeout_s,
        request_id=RequestId(job.request_id),
        cache_salt=job.cache_salt,
        traceparent=job.traceparent,
    )


def _prompt(job: GenerateJob) -> Prompt:
    if job.prompt is not None:
        return TextPrompt(job.prompt)
    if job.prompt_ids is not None:
        return TokenPrompt(job.prompt_ids)
    turns = enumerate(job.messages or ())
    return ChatPrompt(tuple(_turn(turn, f"messages[{i}]") for i, turn in turns))


def _turn(turn: PublicMessage, path: str) -> ChatMessage:
    calls = tuple(
        ToolCall(
            call.call_id,
            call.function,
            tool_arguments(call.arguments_json, f"{path}.tool_calls[{i}].arguments_json"),
        )
        for i, call in enumerate(turn.tool_calls)
    )
    return ChatMessage(turn.role, turn.content, turn.name, calls, turn.tool_call_id)


def _sampling(options: SamplingOptions) -> SamplingParams:
    return SamplingParams(
        max_tokens=_NO_LIMIT,
        min_tokens=_or(options.min_tokens, 0),
        temperature=_or(options.temperature, 1.0),
        top_k=_or(options.top_k, 0),
        top_p=_or(options.top_p, 1.0),
        min_p=_or(options.min_p, 0.0),
        repetition_penalty=_or(options.repetition_penalty, 1.0),
        presence_penalty=_or(options.presence_penalty, 0.0),
        frequency_penalty=_or(options.frequency_penalty, 0.0),
        logit_bias=options.logit_bias,
        stop_token_ids=options.stop_token_ids,
        ignore_eos=bool(options.ignore_eos),
        num_logprobs=options.num_logprobs,
    )


def _or(value: _NumberT | None, default: _NumberT) -> _NumberT:
    return default if value is None else value


def _token(token: RouterTokenText) -> TokenText:
    return TokenText(token.token_id, token.text, token.token_bytes, token.logprob)


def _worker(worker: WorkerEntry) -> WorkerView:
    return WorkerView(
        worker_id=worker.worker_id,
        incarnation=worker.incarnation,
        role=worker.role,
        device=worker.device,
        limits=worker.limits,
        status=worker.status,
        endpoints=worker.endpoints,
        num_legs=worker.num_legs,
        draining=worker.draining,
        peer=worker.peer,
    )
