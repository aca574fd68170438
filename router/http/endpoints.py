"""The two generating endpoints, as plain ASGI applications.

    read body -> decode -> TextJob -> TextService.start -> whole or stream

While the answer is under way the connection is watched: when the client leaves, the generation is
cancelled at once. This module does not know the shapes of bodies (schemas.py, *_reply.py). Not
covered: authentication.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from pdserve.errors import PayloadTooLarge, PdserveError
from pdserve.log import event_log
from pdserve.metrics import ServiceMetrics
from pdserve.types import RequestId
from router.http.body import decode_body, discard_rest, read_body
from router.http.chat_reply import ChatReply
from router.http.completion_reply import CompletionReply
from router.http.config import HttpConfig
from router.http.errors import HeaderList
from router.http.jobs import chat_job, check_model, completion_job, reply_options
from router.http.replies import Frame, Reply
from router.http.schemas import ChatRequest, CompletionRequest, GenerationRequest
from router.http.server import abort_connection
from router.http.streaming import (
    Answer,
    ImpatientSend,
    StalledReader,
    send_error,
    send_stream,
    send_whole,
)
from router.text_generation import TextGeneration, TextService
from router.text_job import TextJob, new_request_id

logger = event_log(__name__)

_Body = TypeVar("_Body", bound=GenerationRequest)
_USABLE_ID = re.compile(r"^[A-Za-z0-9._:/+=-]{1,96}$")


@dataclass(frozen=True, slots=True)
class EndpointKind(Generic[_Body]):
    """What differs between the endpoints."""

    schema: type[_Body]
    id_prefix: str
    job: Callable[[_Body, RequestId], TextJob]
    reply: Callable[[Frame, TextGeneration], Reply]


COMPLETIONS = EndpointKind(
    CompletionRequest,
    "cmpl-",
    completion_job,
    lambda frame, generation: CompletionReply(frame, num_logprobs=generation.sampling.num_logprobs),
)
CHAT_COMPLETIONS = EndpointKind(
    ChatRequest,
    "chatcmpl-",
    chat_job,
    lambda frame, generation: ChatReply(
        frame, with_logprobs=generation.sampling.num_logprobs is not None
    ),
)


class GenerationEndpoint(Generic[_Body]):
    """ASGI application of one endpoint."""

    def __init__(
        self,
        kind: EndpointKind[_Body],
        service: TextService,
        metrics: ServiceMetrics,
        config: HttpConfig,
    ) -> None:
        self._kind = kind
        self._service = service
        self._metrics = metrics
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        impatient = ImpatientSend(send, self._config.stalled_write_s)
        try:
            await self._serve(scope, receive, impatient)
        except StalledReader as error:
            logger.info("http_stalled_reader", peer=scope.get("client"), error=error)
            abort_connection(scope)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        client_id, request_id = _request_ids(headers.get("x-request-id", ""))
        out_headers: HeaderList = [(b"x-request-id", client_id.encode())]
        try:
            raw = await self._read(headers, receive)
        except PdserveError as error:
            await self._refuse_unread(error, receive, send, out_headers)
            return
        try:
            body, job = self._understand(raw, request_id)
            generation = await self._service.start(job)
        except PdserveError as error:
            await send_error(error, send, out_headers)
            return
        options = reply_options(body, timing_header=headers.get("x-pdserve-timing") == "1")
        frame = Frame(
            f"{self._kind.id_prefix}{request_id}", int(time.time()), self._service.model.name
        )
        reply = self._kind.reply(frame, generation)
        await self._answer(Answer(generation, reply, options, out_headers), receive, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        return await read_body(
            headers,
            receive,
            max_bytes=self._config.max_body_bytes,
            timeout_s=self._config.body_timeout_s,
        )

    def _understand(self, raw: bytes, request_id: RequestId) -> tuple[_Body, TextJob]:
        """Refusals here are counted here; the text service counts its own."""
        try:
            body = decode_body(raw, self._kind.schema)
            check_model(body, self._service.model.name)
            return body, self._kind.job(body, request_id)
        except PdserveError as error:
            self._metrics.count_refused(error.code)
            raise

    async def _refuse_unread(
        self, error: PdserveError, receive: Receive, send: Send, headers: HeaderList
    ) -> None:
        """The connection cannot be used again: the rest of the body may still be coming."""
        self._metrics.count_refused(error.code)
        await send_error(error, send, [*headers, (b"connection", b"close")], more=True)
        if isinstance(error, PayloadTooLarge):
            await discard_rest(
                receive, max_bytes=self._config.max_linger_bytes, timeout_s=self._config.linger_s
            )
        await send({"type": "http.response.body", "body": b""})

    async def _answer(self, answer: Answer, receive: Receive, send: Send) -> None:
        generation = answer.generation
        watcher = asyncio.create_task(_cancel_when_gone(receive, generation))
        try:
            if answer.options.stream:
                await send_stream(answer, send)
            else:
                await send_whole(answer, send)
        except StalledReader as error:
            generation.cancel(f"stalled reader: {error}")
            raise
        finally:
            generation.cancel("the connection ended")
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


async def _cancel_when_gone(receive: Receive, generation: TextGeneration) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.cancel("the client disconnected")


def _request_ids(given: str) -> tuple[str, RequestId]:
    """(id for the client, id inside). A client's id is kept, and made unique inside."""
    if not _USABLE_ID.match(given):
        request_id = new_request_id()
        return request_id, request_id
    return given, RequestId(f"{given}-{uuid4().hex[:12]}")
