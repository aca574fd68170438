"""The two generating endpoints, as plain ASGI applications.

    read body -> decode -> TextJobs -> TextService.start_all -> whole or stream

While the answer is under way the connection is watched: when the client leaves, its generations are
cancelled at once. This module does not know the shapes of bodies (schemas.py, *_reply.py). Not
covered: authentication.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from starlette.types import Receive, Scope, Send

from pdserve.clock import Clock
from pdserve.errors import PdserveError
from pdserve.log import event_log
from pdserve.metrics import ServiceMetrics
from pdserve.request_start import REQUEST_START, Arrival, stated_wait_s
from pdserve.route_hints import EXPLAIN, NO_HINTS, read_hints
from pdserve.tracing import read_context
from pdserve.types import RequestId
from router.http.body import decode_body
from router.http.chat_reply import ChatReply
from router.http.completion_reply import CompletionReply
from router.http.config import HttpConfig
from router.http.errors import send_error
from router.http.jobs import chat_jobs, check_model, completion_jobs, reply_options
from router.http.reading import BodyReader
from router.http.replies import Frame, Reply
from router.http.request_ids import internal_request_id
from router.http.schemas import ChatRequest, CompletionRequest, GenerationRequest
from router.http.server import abort_connection, may_wait_in_send
from router.http.streaming import (
    Answer,
    Choice,
    ImpatientSend,
    StalledReader,
    send_stream,
    send_whole,
)
from router.text_generation import TextGeneration, TextService
from router.text_job import TextJob, TextPrompt, TokenPrompt
from router.tokenizer import TextModel

logger = event_log(__name__)

_Body = TypeVar("_Body", bound=GenerationRequest)


@dataclass(frozen=True, slots=True)
class ReplyContext(Generic[_Body]):
    """What one answer's reply is made from."""

    index: int
    body: _Body
    job: TextJob
    generation: TextGeneration
    text: TextModel

    @property
    def num_logprobs(self) -> int | None:
        return self.generation.sampling.num_logprobs


@dataclass(frozen=True, slots=True)
class EndpointKind(Generic[_Body]):
    """What differs between the endpoints. The last two are the names of OpenAI's objects."""

    schema: type[_Body]
    id_prefix: str
    jobs: Callable[[_Body, RequestId], tuple[TextJob, ...]]
    reply: Callable[[ReplyContext[_Body]], Reply]
    whole_kind: str
    chunk_kind: str


def _completion_reply(context: ReplyContext[CompletionRequest]) -> CompletionReply:
    echo = ""
    if context.body.echo:
        match context.job.prompt:
            case TextPrompt(text):
                echo = text
            case TokenPrompt(token_ids):
                echo = context.text.decode(token_ids)
    # As asked for: those that best_of is chosen by are not told.
    return CompletionReply(context.index, num_logprobs=context.body.logprobs, echo=echo)


def _chat_reply(context: ReplyContext[ChatRequest]) -> ChatReply:
    return ChatReply(context.index, with_logprobs=context.num_logprobs is not None)


COMPLETIONS = EndpointKind(
    CompletionRequest, "cmpl-", completion_jobs, _completion_reply,
    whole_kind="text_completion", chunk_kind="text_completion",
)  # fmt: skip
CHAT_COMPLETIONS = EndpointKind(
    ChatRequest, "chatcmpl-", chat_jobs, _chat_reply,
    whole_kind="chat.completion", chunk_kind="chat.completion.chunk",
)  # fmt: skip


class GenerationEndpoint(Generic[_Body]):
    """ASGI application of one endpoint."""

    def __init__(
        self,
        kind: EndpointKind[_Body],
        service: TextService,
        metrics: ServiceMetrics,
        config: HttpConfig,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._kind = kind
        self._service = service
        self._metrics = metrics
        self._config = config
        self._reader = BodyReader(metrics, config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        impatient = ImpatientSend(send, self._config.stalled_write_s, may_wait_in_send(scope))
        try:
            await self._serve(scope, receive, impatient)
        except StalledReader as error:
            logger.info("http_stalled_reader", peer=scope.get("client"), error=error)
            abort_connection(scope)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_s, arrived_unix_s = self._clock.now(), time.time()
        headers = _first_values(scope)
        request_id = internal_request_id(scope)
        raw = await self._reader.read(scope, receive, send)
        if raw is None:
            return
        try:
            body, jobs = self._understand(raw, request_id)
            traceparent = read_context(headers.get("traceparent", ""))
            hints = read_hints(headers.get)
            if traceparent or hints != NO_HINTS:
                jobs = tuple(replace(job, traceparent=traceparent, hints=hints) for job in jobs)
            waited_s = stated_wait_s(headers.get(REQUEST_START), arrived_unix_s)
            arrival = Arrival(self._clock.now() - arrived_s, waited_s)
            generations = await self._service.start_all(jobs, arrival=arrival)
        except PdserveError as error:
            await send_error(error, send)
            return
        wants_timing = "1" in (headers.get("x-pdserve-timing"), headers.get(EXPLAIN))
        options = reply_options(body, timing_header=wants_timing)
        answer = Answer(
            self._choices(body, jobs, generations, options.num_answers),
            self._frame(request_id),
            options,
        )
        await self._answer(answer, receive, send)

    def _choices(
        self,
        body: _Body,
        jobs: tuple[TextJob, ...],
        generations: tuple[TextGeneration, ...],
        num_answers: int,
    ) -> tuple[Choice, ...]:
        text = self._service.text_model
        choices: list[Choice] = []
        for job, generation in zip(jobs, generations, strict=True):
            index = (job.prompt_index or 0) * num_answers + job.answer_index
            reply = self._kind.reply(ReplyContext(index, body, job, generation, text))
            choices.append(Choice(generation, reply, job.answer_index))
        return tuple(choices)

    def _frame(self, request_id: RequestId) -> Frame:
        kind, model = self._kind, self._service.model.name
        answer_id = f"{kind.id_prefix}{request_id}"
        return Frame(answer_id, int(time.time()), model, kind.whole_kind, kind.chunk_kind)

    def _understand(self, raw: bytes, request_id: RequestId) -> tuple[_Body, tuple[TextJob, ...]]:
        """Refusals here are counted here; the text service counts its own."""
        try:
            body = decode_body(raw, self._kind.schema)
            check_model(body.model, self._service.model.name)
            return body, self._kind.jobs(body, request_id)
        except PdserveError as error:
            self._metrics.count_refused(error.code)
            raise

    async def _answer(self, answer: Answer, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(_cancel_when_gone(receive, answer))
        try:
            if answer.options.stream:
                await send_stream(answer, send)
            else:
                await send_whole(answer, send)
        except StalledReader as error:
            answer.cancel(f"stalled reader: {error}")
            raise
        finally:
            answer.cancel("the connection ended")
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


def _first_values(scope: Scope) -> dict[str, str]:
    """Headers by their lower-case names; of several of one name the first."""
    pairs = reversed(list(scope["headers"]))
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}


async def _cancel_when_gone(receive: Receive, answer: Answer) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel("the client disconnected")
