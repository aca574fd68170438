"""Sending the text generations of one request to an HTTP client: whole, or as server-sent events.

Before the first token an error is an ordinary HTTP response; after the first byte it is an event
``data: {"error": ...}`` without a ``[DONE]``. The choices of a stream come as their tokens do,
mixed; the failure of one ends all. A client that takes nothing for too long is told from a slow one
by ImpatientSend. This module does not know how requests are read (endpoints.py). Not covered:
resuming a broken stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from starlette.types import Message, Send

from pdserve.errors import PdserveError
from router.best_answers import WholeAnswer, likeliest
from router.http.errors import HeaderList, error_body, send_error, send_json
from router.http.jobs import ReplyOptions
from router.http.replies import Extras, Frame, Piece, Reply, usage_of
from router.text_generation import TextGeneration
from router.text_job import TextDelta

_STREAM_HEADERS: HeaderList = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # reverse proxies must not collect the events
]

# Characters that JSON may hold as they are, but at which many clients' readers of lines (those of
# Python's splitlines, httpx among them) would cut an event in two.
_LINE_ENDS = tuple(
    (character.encode(), b"\\u%04x" % ord(character)) for character in ("\x85", "\u2028", "\u2029")
)


class StalledReader(Exception):
    """The client took nothing for too long. Never leaves router/http."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A generation under way and how it is told. ``answer_index``: among those to its prompt."""

    generation: TextGeneration
    reply: Reply
    answer_index: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request gets, in order of its prompts, and how its client wants it told.

    The answers to one prompt lie side by side; their prompt is counted once.
    """

    choices: tuple[Choice, ...]
    frame: Frame
    options: ReplyOptions

    def extras(self, *, usage: bool, timing: bool) -> Extras:
        """Of all choices together."""
        generations = [choice.generation for choice in self.choices]
        firsts = [choice.generation for choice in self.choices if not choice.answer_index]
        return Extras(
            usage_of(
                sum(generation.num_prompt_tokens for generation in firsts),
                sum(generation.num_completion_tokens for generation in generations),
                sum(generation.num_cached_tokens for generation in firsts),
            )
            if usage
            else None,
            tuple(generation.timing for generation in generations) if timing else (),
            "prompts" if len(firsts) == len(generations) else "answers",
        )

    def cancel(self, reason: str) -> None:
        for choice in self.choices:
            choice.generation.cancel(reason)


async def send_whole(answer: Answer, send: Send) -> None:
    """One JSON response when all texts have ended, or an error response."""
    texts = {id(choice): WholeAnswer() for choice in answer.choices}

    async def take(choice: Choice, delta: TextDelta) -> None:
        texts[id(choice)].add(delta)

    try:
        await _read_all(answer.choices, take)
    except PdserveError as error:
        await send_error(error, send)
        return
    told = _told(answer, [texts[id(choice)] for choice in answer.choices])
    body = answer.frame.whole(told, answer.extras(usage=True, timing=answer.options.timing))
    await send_json(send, 200, body, [])


async def send_stream(answer: Answer, send: Send) -> None:
    """Server-sent events, the header with the first token; or an error response."""
    stream = _EventStream(answer, send)
    try:
        await _read_all(answer.choices, stream.take)
    except PdserveError as error:
        if not stream.begun:
            await send_error(error, send)
            return
        await _send_event(error_body(error), send)
    else:
        await stream.end()
    await send({"type": "http.response.body", "body": b""})


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
    for character, escape in _LINE_ENDS:
        if character in data:
            data = data.replace(character, escape)
    body = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _told(answer: Answer, texts: list[WholeAnswer]) -> list[msgspec.Struct]:
    """The answers in their places; of more than the client gets, the likeliest, best first."""
    num_answers, groups = answer.options.num_answers, _groups(answer.choices)
    told: list[msgspec.Struct] = []
    for group in groups:
        found = likeliest([texts[position] for position in group], num_answers)
        for position, text in zip(group, found, strict=False):
            told.append(answer.choices[position].reply.whole(_piece(text.whole())))
    return told


def _piece(delta: TextDelta) -> Piece:
    return Piece(delta.text, delta.logprobs, delta.finish_reason)


def _groups(choices: tuple[Choice, ...]) -> list[list[int]]:
    """Positions of the answers to each prompt."""
    groups: list[list[int]] = []
    for position, choice in enumerate(choices):
        if not choice.answer_index:
            groups.append([])
        groups[-1].append(position)
    return groups


class _EventStream:
    """The events of one answer, the header before the first of them."""

    def __init__(self, answer: Answer, send: Send) -> None:
        self._answer = answer
        self._send = send
        self.begun = False

    async def take(self, choice: Choice, delta: TextDelta) -> None:
        """One chunk, unless the text is held back and there is nothing to tell yet."""
        if not self.begun:
            self.begun = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS}
            )
        ends = delta.finish_reason is not None
        if not (delta.text or delta.logprobs or ends):
            return
        options = self._answer.options
        extras = self._answer.extras(usage=options.continuous_usage, timing=False)
        if options.timing and ends and not options.include_usage:
            extras = Extras(extras.usage, (choice.generation.timing,))
        told = choice.reply.chunk(_piece(delta))
        await _send_event(self._answer.frame.chunk([told], extras), self._send)
        choice.generation.first_piece_sent()

    async def end(self) -> None:
        """What comes after all texts."""
        options = self._answer.options
        if options.include_usage:
            extras = self._answer.extras(usage=True, timing=options.timing)
            await _send_event(self._answer.frame.chunk([], extras), self._send)
        await _send_event(b"[DONE]", self._send)


async def _read_all(
    choices: tuple[Choice, ...], take: Callable[[Choice, TextDelta], Awaitable[None]]
) -> None:
    """Hand over every delta of every choice as they come, one at a time.

    Raises what a generation or ``take`` raises first; the others are then read no further.
    """
    if len(choices) == 1:
        async for delta in choices[0].generation:
            await take(choices[0], delta)
        return
    turn = asyncio.Lock()

    async def read(choice: Choice) -> None:
        async for delta in choice.generation:
            async with turn:
                await take(choice, delta)

    try:
        async with asyncio.TaskGroup() as group:
            for choice in choices:
                group.create_task(read(choice))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
