"""Sending one text generation to an HTTP client: whole, or as server-sent events.

Before the first token an error is an ordinary HTTP response; after the first byte it is an event
``data: {"error": ...}`` without a ``[DONE]``. A client that takes nothing for too long is told
from a slow one by ImpatientSend. This module does not know how requests are read (endpoints.py).
Not covered: resuming a broken stream.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import Message, Send

from pdserve.errors import PdserveError
from router.http.errors import HeaderList, error_body, error_headers, send_json
from router.http.jobs import ReplyOptions
from router.http.replies import Extras, Piece, Reply, usage_of
from router.text_generation import TextGeneration
from router.text_job import TextDelta, TextLogprobs

_STREAM_HEADERS: HeaderList = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # reverse proxies must not collect the events
]


class StalledReader(Exception):
    """The client took nothing for too long. Never leaves router/http."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A generation under way and how its client wants it told."""

    generation: TextGeneration
    reply: Reply
    options: ReplyOptions
    headers: HeaderList

    def extras(self, *, usage: bool, timing: bool) -> Extras:
        generation = self.generation
        return Extras(
            usage_of(generation.num_prompt_tokens, generation.num_completion_tokens)
            if usage
            else None,
            generation.timing if timing else None,
        )


async def send_whole(answer: Answer, send: Send) -> None:
    """One JSON response when the text has ended, or an error response."""
    texts: list[str] = []
    logprobs: list[TextLogprobs] = []
    finish_reason = None
    try:
        async for delta in answer.generation:
            texts.append(delta.text)
            logprobs.extend(delta.logprobs)
            finish_reason = delta.finish_reason
    except PdserveError as error:
        await send_error(error, send, answer.headers)
        return
    piece = Piece("".join(texts), tuple(logprobs), finish_reason)
    body = answer.reply.whole(piece, answer.extras(usage=True, timing=answer.options.timing))
    await send_json(send, 200, body, answer.headers)


async def send_stream(answer: Answer, send: Send) -> None:
    """Server-sent events, the header with the first token; or an error response."""
    try:
        first = await anext(answer.generation)
    except PdserveError as error:
        await send_error(error, send, answer.headers)
        return
    headers = _STREAM_HEADERS + answer.headers
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        await _send_deltas(answer, first, send)
    except PdserveError as error:
        await _send_event(error_body(error), send)
    else:
        await _send_event(b"[DONE]", send)
    await send({"type": "http.response.body", "body": b""})


async def send_error(
    error: PdserveError, send: Send, headers: HeaderList, *, more: bool = False
) -> None:
    """``more``: the caller ends the response (with an empty body)."""
    all_headers = error_headers(error) + headers
    await send_json(send, error.http_status, error_body(error), all_headers, more=more)


class ImpatientSend:
    """An ASGI ``send`` with a deadline for the client to make room.

    The server waits in ``send`` while the client's window and the write buffer are full.
    """

    def __init__(self, send: Send, stalled_write_s: float) -> None:
        self._send = send
        self._stalled_write_s = stalled_write_s

    async def __call__(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._stalled_write_s):
                await self._send(message)
        except TimeoutError as error:
            raise StalledReader(f"took nothing for {self._stalled_write_s:g} s") from error


async def _send_event(data: bytes, send: Send) -> None:
    body = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _send_deltas(answer: Answer, first: TextDelta, send: Send) -> None:
    options = answer.options
    await _send_delta(answer, first, send)
    async for delta in answer.generation:
        await _send_delta(answer, delta, send)
    if options.include_usage:
        extras = answer.extras(usage=True, timing=options.timing)
        await _send_event(answer.reply.end_chunk(extras), send)


async def _send_delta(answer: Answer, delta: TextDelta, send: Send) -> None:
    """One chunk, unless the token's text is held back and there is nothing to tell yet."""
    ends = delta.finish_reason is not None
    if not (delta.text or delta.logprobs or ends):
        return
    options = answer.options
    extras = answer.extras(
        usage=options.continuous_usage,
        timing=options.timing and ends and not options.include_usage,
    )
    piece = Piece(delta.text, delta.logprobs, delta.finish_reason)
    await _send_event(answer.reply.chunk(piece, extras), send)
