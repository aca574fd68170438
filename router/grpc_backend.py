"""The text service as the public gRPC face sees it: an ``InferenceBackend`` (pdserve/public.py).

Translates values both ways and fills in the defaults, which are those of the HTTP face: temperature
1, everything else off, the rest of the context as limit. This module does not know gRPC (the face
is pdserve/rpc/inference_server.py) and judges no ranges; TextService and SamplingParams do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TypeVar

from pdserve.errors import PdserveError, UnknownDecision, UnknownModel
from pdserve.explained import RequestDecisions
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
from pdserve.request_start import AT_ONCE, Arrival
from pdserve.request_timing import RequestTiming
from pdserve.types import ModelInfo, RequestId, SamplingParams
from router.answer_streams import AnswerStreams
from router.best_answers import BestAnswers
from router.chat_template import ChatMessage, ToolCall, tool_arguments
from router.cluster_view import ClusterStatus, WorkerEntry
from router.recent_requests import RecentRequests
from router.text_generation import TextGeneration, TextService
from router.text_job import (
    ChatPrompt,
    Prompt,
    TextDelta,
    TextJob,
    TextPrompt,
    TokenPrompt,
    answer_id,
    check_best_of,
    check_num_answers,
    new_request_id,
    to_choose_by,
)
from router.text_job import TokenText as RouterTokenText

_NO_LIMIT = 2**31 - 1  # stands in for max_tokens until the text service knows the real one
_NumberT = TypeVar("_NumberT", int, float)


class TextStream:
    """The answers to one prompt; satisfies ``GenerationStream``.

    ``request_id`` and ``timing`` are the first one's, for which the prompt was computed. Of more
    generations than are told the best come when all have ended.
    """

    def __init__(
        self, generations: tuple[TextGeneration, ...], num_told: int = 1, *, logprobs: bool = True
    ) -> None:
        """``logprobs``: to be told, not only to choose by."""
        self._generations = generations
        self._first = generations[0]
        self._num_told = num_told
        self._tells_logprobs = logprobs
        self._picks = len(generations) > num_told
        self._answers: AnswerStreams | BestAnswers | None = None
        if self._picks:
            self._answers = BestAnswers(generations, num_told)
        elif len(generations) > 1:
            self._answers = AnswerStreams(generations)
        self._num_ended = 0

    @property
    def request_id(self) -> str:
        return self._first.request_id

    @property
    def timing(self) -> RequestTiming:
        return self._first.timing

    def first_piece_sent(self) -> None:
        if not self._picks:  # an answer told whole has no first piece
            self._first.first_piece_sent()

    def cancel(self, reason: str) -> None:
        if self._answers is not None:
            self._answers.close()
        for generation in self._generations:
            generation.cancel(reason)

    def __aiter__(self) -> AsyncIterator[GenerateDelta]:
        return self

    async def __anext__(self) -> GenerateDelta:
        if self._answers is None:
            return self._public_delta(0, await anext(self._first))
        try:
            item = await self._answers.read()
        except PdserveError:
            self.cancel("another answer to the prompt failed")
            raise
        if item is None:
            raise StopAsyncIteration
        return self._public_delta(*item)

    def _public_delta(self, answer_index: int, delta: TextDelta) -> GenerateDelta:
        self._num_ended += delta.finish_reason is not None
        ends = delta.finish_reason is not None and self._num_ended == self._num_told
        return GenerateDelta(
            text=delta.text,
            token_ids=delta.token_ids,
            logprobs=tuple(
                SampledToken(_token(each.chosen), tuple(_token(top) for top in each.top))
                for each in (delta.logprobs if self._tells_logprobs else ())
            ),
            finish_reason=delta.finish_reason,
            usage=self._usage() if ends else None,
            answer_index=answer_index,
        )

    def _usage(self) -> Usage:
        """The prompt is counted once, and every answer that was generated."""
        return Usage(
            self._first.num_prompt_tokens,
            sum(generation.num_completion_tokens for generation in self._generations),
            self._first.num_cached_tokens,
        )


class TextBackend:
    """Satisfies ``InferenceBackend``."""

    def __init__(
        self,
        service: TextService,
        status: Callable[[], ClusterStatus],
        recent: RecentRequests | None = None,
        explain: Callable[[str], RequestDecisions] | None = None,
    ) -> None:
        """``status`` gives a snapshot of the cluster whenever it is called, ``explain`` the routing
        decisions of a request."""
        self._service = service
        self._status = status
        self._recent = RecentRequests(0) if recent is None else recent
        self._explain = explain or _nothing_kept

    async def generate(self, job: GenerateJob, *, arrival: Arrival = AT_ONCE) -> TextStream:
        """Raises UnknownModel, and what TextService.start_all raises."""
        served = self._service.model.name
        if job.model not in ("", served):
            raise UnknownModel(f"model: {job.model!r} is not served here, only {served!r}")
        generations = await self._service.start_all(_text_jobs(job), arrival=arrival)
        tells_logprobs = job.sampling.num_logprobs is not None
        return TextStream(generations, job.num_answers, logprobs=tells_logprobs)

    def models(self) -> tuple[ModelInfo, ...]:
        return (self._service.model,)

    def request_record(self, request_id: str) -> RequestRecord:
        """Raises UnknownRequest."""
        return self._recent.find(request_id)

    def explain(self, request_id: str) -> RequestDecisions:
        """Raises UnknownDecision."""
        return self._explain(request_id)

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
            kv_pairs=status.kv_pairs,
            problem=status.problem(),
            refused=status.refused,
        )


def _nothing_kept(request_id: str) -> RequestDecisions:
    raise UnknownDecision(f"no routing decision of {request_id!r}: none are kept")


def _text_jobs(job: GenerateJob) -> tuple[TextJob, ...]:
    """One for each answer that is generated."""
    check_num_answers("num_answers", job.num_answers)
    num_answers = check_best_of(job.best_of, job.num_answers, "num_answers")
    first = _text_job(job, to_choose_by(job.sampling.num_logprobs, num_answers, job.num_answers))
    if num_answers == 1:
        return (first,)
    request_id = first.request_id or new_request_id()
    return tuple(
        replace(first, answer_index=i, request_id=answer_id(request_id, i))
        for i in range(num_answers)
    )


def _text_job(job: GenerateJob, num_logprobs: int | None) -> TextJob:
    return TextJob(
        prompt=_prompt(job),
        sampling=_sampling(job.sampling, num_logprobs),
        max_tokens=job.sampling.max_tokens,
        seed=job.sampling.seed,
        stop_strings=job.stop,
        priority=job.priority,
        timeout_s=job.timeout_s,
        request_id=RequestId(job.request_id),
        cache_salt=job.cache_salt,
        traceparent=job.traceparent,
        hints=job.hints,
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


def _sampling(options: SamplingOptions, num_logprobs: int | None) -> SamplingParams:
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
        num_logprobs=num_logprobs,
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
        silent=worker.silent,
        peer=worker.peer,
    )
