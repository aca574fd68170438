"""Text in, text out, over token ids: what both faces (HTTP, gRPC) call.

    job -> render chat, encode, check limits -> Request -> TokenService
    TokenEvent -> detokenise -> stop strings -> TextDelta

Stop strings live here: a match cancels the generation underneath, drops the match and what follows,
and ends the text normally. So do the service's request metrics, since only here a stop string can
be told from a cancellation. This module does not know HTTP, gRPC, workers or queues.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from pdserve.clock import Clock, MonotonicClock
from pdserve.errors import EngineFailure, InvalidRequest, PdserveError, RequestCancelled
from pdserve.log import event_log
from pdserve.metrics import ServiceMetrics
from pdserve.public import RequestRecord
from pdserve.request_start import AT_ONCE, Arrival
from pdserve.request_timing import RequestTiming
from pdserve.tracing import Tracer
from pdserve.types import (
    FinishReason,
    ModelInfo,
    Request,
    RequestId,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from router.answer_text import AnswerText
from router.face_timing import FaceTiming
from router.generation import Generation, TokenService
from router.prompt_limits import answer_limit, check_prompt, check_token_ids
from router.recent_requests import RecentRequests
from router.request_spans import record_request, record_send
from router.text_job import (
    ChatPrompt,
    TextDelta,
    TextJob,
    TextLogprobs,
    TextPrompt,
    TokenPrompt,
    TokenText,
    new_request_id,
    seed_of_answer,
)
from router.tokenizer import TextModel

logger = event_log(__name__)


class TextService:
    """Starts text generations. Counts every prompt once in ``metrics``, if given."""

    def __init__(
        self,
        tokens: TokenService,
        text: TextModel,
        *,
        metrics: ServiceMetrics | None = None,
        clock: Clock | None = None,
        recent: RecentRequests | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``clock`` must be the one ``tokens`` reads deadlines on; default: the real one.
        ``recent`` gets the ledger of every request that ends; default: nobody.
        """
        self._tokens = tokens
        self._text = text
        self._metrics = metrics or ServiceMetrics()
        self._clock = clock or MonotonicClock()
        self._recent = RecentRequests(0) if recent is None else recent
        self._tracer = tracer or Tracer()

    @property
    def model(self) -> ModelInfo:
        return self._tokens.model

    @property
    def text_model(self) -> TextModel:
        """For what is about text alone, without a generation."""
        return self._text

    async def start(self, job: TextJob, *, arrival: Arrival = AT_ONCE) -> TextGeneration:
        """Encode the prompt, check it against the model's limits, queue it.

        ``arrival``: for the ledger.

        Raises:
            InvalidRequest: the prompt is empty, too long together with max_tokens, holds a token id
                out of range, or is refused by the chat template.
            Overloaded, ShuttingDown: as TokenService.start.
        """
        return (await self.start_all((job,), arrival=arrival))[0]

    async def start_all(
        self, jobs: Sequence[TextJob], *, arrival: Arrival = AT_ONCE
    ) -> tuple[TextGeneration, ...]:
        """The prompts of one request: all are encoded and checked before the first is queued.

        A job whose ``answer_index`` is above 0 is another answer to the prompt before it.

        Raises:
            As ``start``, for the first that is refused; then none of them runs.
        """
        started_s = self._clock.now()
        generations: list[TextGeneration] = []
        first: Generation | None = None  # of the answers to one prompt
        try:
            requests = await self._requests(jobs, started_s)
            for job, request in zip(jobs, requests, strict=True):
                tokenize_s = self._clock.now() - started_s
                tokens = self._tokens.start(
                    request,
                    tokenize_s=tokenize_s,
                    follows=first.request_id if first and job.answer_index else None,
                    hints=job.hints,
                )
                first = first if job.answer_index else tokens
                face = FaceTiming(self._clock, started_s, arrival)
                generations.append(self._generation(tokens, request, job, face))
        except PdserveError as error:
            for generation in generations:
                generation.cancel("another prompt of the same request was refused")
            self._metrics.count_refused(error.code)
            raise
        return tuple(generations)

    async def _requests(self, jobs: Sequence[TextJob], started_s: float) -> list[Request]:
        """One for each job; each prompt is encoded once, however many answers it gets."""
        requests: list[Request] = []
        prompt_ids: tuple[int, ...] = ()
        seed = 0
        for job in jobs:
            if not job.answer_index:
                prompt_ids = await self._encode(job)
                seed = secrets.randbits(63) if job.seed is None else job.seed
            own_seed = seed_of_answer(seed, job.answer_index)
            requests.append(self._request(job, prompt_ids, own_seed, started_s))
        return requests

    def _generation(
        self, tokens: Generation, request: Request, job: TextJob, face: FaceTiming
    ) -> TextGeneration:
        return TextGeneration(
            tokens, request, self._text, job, face, self._tokens.model.name,
            metrics=self._metrics, clock=self._clock, recent=self._recent, tracer=self._tracer,
        )  # fmt: skip

    async def _encode(self, job: TextJob) -> tuple[int, ...]:
        match job.prompt:
            case TextPrompt(text):
                if not text:
                    raise InvalidRequest(job.prompt_field, "must not be empty")
                return await self._text.encode_prompt(text)
            case ChatPrompt(messages):
                return await self._text.encode_rendered(self._text.render_chat(messages))
            case TokenPrompt(token_ids):
                return token_ids

    def _request(
        self, job: TextJob, prompt_ids: tuple[int, ...], seed: int, started_s: float
    ) -> Request:
        model = self._tokens.model
        check_prompt(prompt_ids, model, job.prompt_field)
        max_tokens = answer_limit(len(prompt_ids), job.max_tokens, model)
        sampling = replace(job.sampling, max_tokens=max_tokens, seed=seed)
        check_token_ids("stop_token_ids", sampling.stop_token_ids, model.vocab_size)
        bias_ids = tuple(token_id for token_id, _ in sampling.logit_bias)
        check_token_ids("logit_bias", bias_ids, model.vocab_size)
        return Request(
            request_id=job.request_id or new_request_id(),
            prompt_ids=prompt_ids,
            sampling=sampling,
            priority=job.priority,
            deadline_s=None if job.timeout_s is None else started_s + job.timeout_s,
            cache_salt=job.cache_salt,
            traceparent=self._tracer.begin(job.traceparent),
        )


class TextGeneration:
    """One text under way: an async iterator of TextDelta, to be used by one reader.

    The last delta carries the finish reason, and the ledger is complete when it comes. A failure is
    raised as one PdserveError. Exactly one of the two happens; whoever stops reading before that
    calls ``cancel``.
    """

    def __init__(
        self,
        tokens: Generation,
        request: Request,
        text: TextModel,
        job: TextJob,
        face: FaceTiming,
        model: str,
        *,
        metrics: ServiceMetrics,
        clock: Clock,
        recent: RecentRequests,
        tracer: Tracer,
    ) -> None:
        self._tokens = tokens
        self._events = aiter(tokens)
        self._request = request
        self._text = text
        self._answer = AnswerText(
            text.detokenizer(continues=not isinstance(job.prompt, ChatPrompt)),
            job.stop_strings,
            request.sampling.min_tokens,
        )
        self._metrics = metrics
        self._clock = clock
        self._face = face
        self._model = model
        self._recent = recent
        self._tracer = tracer
        self._parent_span = job.traceparent
        self._shares_prompt = job.answer_index > 0
        self._outcome = ""  # once it has one
        self._last_token_s: float | None = None
        self._num_completion_tokens = 0
        self._ended = False  # nothing more will come out
        self._whole: RequestTiming | None = None  # the ledger, once it ended; less what is sent yet
        metrics.count_started()

    @property
    def request_id(self) -> RequestId:
        return self._request.request_id

    @property
    def sampling(self) -> SamplingParams:
        """As it is run: with max_tokens and seed filled in."""
        return self._request.sampling

    @property
    def timing(self) -> RequestTiming:
        """The ledger so far. Its token counts are the text's: a stop string's overrun is out."""
        if self._whole is not None:
            return self._whole
        timing = self._face.completed(
            self._tokens.timing,
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self._num_completion_tokens,
        )
        if self._ended:
            self._whole = timing
        return timing

    @property
    def num_prompt_tokens(self) -> int:
        return len(self._request.prompt_ids)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens so far, up to and including the one that completed a stop string."""
        return self._num_completion_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed again; known with the first token."""
        return self._tokens.num_cached_tokens

    def first_piece_sent(self) -> None:
        """The first piece of the answer is on the client's connection. Idempotent."""
        if not self._face.first_piece_sent():
            return
        self._whole = None
        if self._outcome:  # ended before: now it is complete
            record = self._keep_ledger()
            context = self._request.traceparent
            record_send(self._tracer, record.timing, context, self._face.arrived_s)

    def cancel(self, reason: str) -> None:
        """Stop it everywhere; who still reads gets RequestCancelled. Idempotent."""
        if self._ended or self._outcome:
            return
        self._tokens.cancel(reason)
        self._outcome = RequestCancelled.code
        self._metrics.observe_cancelled(self._own_timing)
        self._tell_end()
        logger.info("text_cancelled", request=self.request_id, reason=reason)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        if self._ended:
            raise StopAsyncIteration
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            error = EngineFailure("the generation ended without a finish reason")
            self._failed(error)
            raise error from None
        except PdserveError as error:
            self._failed(error)
            raise
        return await self._delta(event)

    async def _delta(self, event: TokenEvent) -> TextDelta:
        """Of this token and of all that are here already: a reader that lags behind the tokens, or
        gets several in one report, takes them in one piece."""
        events = [event]
        while (following := self._tokens.ready()) is not None:
            events.append(following)
        text, num_tokens, reason = self._answer.take(events)
        del events[num_tokens:]  # beyond a stop string
        self._count_tokens(num_tokens)
        logprobs = [
            self._logprobs(event.token_id, event.logprobs)
            for event in events
            if event.logprobs is not None
        ]
        token_ids = [event.token_id for event in events]
        if reason is not None:
            await self._finish(reason, stopped_early=events[-1].finish_reason is None)
        return TextDelta(text, tuple(token_ids), tuple(logprobs), reason)

    def _count_tokens(self, num_tokens: int) -> None:
        """Of one piece: they leave at once."""
        now_s = self._clock.now()
        if self._last_token_s is not None:
            self._metrics.observe_token_gap(now_s - self._last_token_s)
        if num_tokens > 1:
            self._metrics.observe_token_gap(0.0, num_tokens - 1)
        self._last_token_s = now_s
        self._num_completion_tokens += num_tokens

    def _logprobs(self, token_id: int, logprobs: TokenLogprobs) -> TextLogprobs:
        return TextLogprobs(
            self._token_text(token_id, logprobs.chosen),
            tuple(self._token_text(token_id, logprob) for token_id, logprob in logprobs.top),
        )

    def _token_text(self, token_id: int, logprob: float) -> TokenText:
        token_bytes = self._text.token_bytes(token_id)
        return TokenText(token_id, token_bytes.decode(errors="replace"), token_bytes, logprob)

    async def _finish(self, reason: FinishReason, *, stopped_early: bool) -> None:
        if stopped_early:
            self._tokens.cancel("stop string")
        # The ledger is complete when the events have ended; after a stop string that is when the
        # cancellation has gone through, and what the workers overran is dropped.
        try:
            async for _ in self._events:
                pass
        except PdserveError as error:
            logger.debug("text_overrun_ended", request=self.request_id, error=error.code)
        self._ended = True
        if not self._outcome:
            self._outcome = reason.value
            self._metrics.observe_finished(self._own_timing, reason)
            self._tell_end()

    def _failed(self, error: PdserveError) -> None:
        self._ended = True
        if self._outcome:
            return
        self._outcome = error.code
        if isinstance(error, RequestCancelled):
            self._metrics.observe_cancelled(self._own_timing)
        else:
            self._metrics.observe_failed(self._own_timing, error.code)
        self._tell_end()

    @property
    def _own_timing(self) -> RequestTiming:
        """For sums over requests: the prompt of several answers counts with the first of them."""
        if not self._shares_prompt:
            return self.timing
        return replace(self.timing, num_prompt_tokens=0, prefill_cached_tokens=0)

    def _tell_end(self) -> None:
        record_request(
            self._tracer, self._keep_ledger(), context=self._request.traceparent,
            parent=self._parent_span, arrived_s=self._face.arrived_s, model=self._model,
        )  # fmt: skip

    def _keep_ledger(self) -> RequestRecord:
        record = RequestRecord(self.request_id, self._outcome, self.timing)
        self._recent.add(record)
        return record
