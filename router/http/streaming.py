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
from router.http.replies import NOTHING, Extras, Frame, Piece, Reply, Usage, usage_of
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
_DONE = b"data: [DONE]\n\n"


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
            _usage(firsts, generations) if usage else None,
            tuple([generation.timing for generation in generations]) if timing else (),
            "prompts" if len(firsts) == len(generations) else "answers",
        )

    def cancel(self, reason: str) -> None:
        for choice in self.choices:
            choice.generation.cancel(reason)


def _usage(firsts: list[TextGeneration], generations: list[TextGeneration]) -> Usage:
    """``firsts``: of the answers to each prompt."""
    return usage_of(
        sum([generation.num_prompt_tokens for generation in firsts]),
        sum([generation.num_completion_tokens for generation in generations]),
        sum([generation.num_cached_tokens for generation in firsts]),
    )


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
        await stream.end(_event(error_body(error)))
    else:
        await stream.end(stream.after_texts())


class ImpatientSend:
    """An ASGI ``send`` with a deadline for the client to make room.

    The server waits in ``send`` while the client's window and the write buffer are full.
    ``may_wait`` says before each send whether that can be so now: a deadline costs more than most
    sends.
    """

    def __init__(
        self, send: Send, stalled_write_s: float, may_wait: Callable[[], bool] = lambda: True
    ) -> None:
        self._send = send
        self._stalled_write_s = stalled_write_s
        self._may_wait = may_wait

    async def __call__(self, message: Message) -> None:
        if not self._may_wait():
            await self._send(message)
            return
        try:
            async with asyncio.timeout(self._stalled_write_s):
                await self._send(message)
        except TimeoutError as error:
            raise StalledReader(f"took nothing for {self._stalled_write_s:g} s") from error


def _event(data: bytes) -> bytes:
    for character, escape in _LINE_ENDS:
        if character in data:
            data = data.replace(character, escape)
    return b"data: " + data + b"\n\n"


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
    """The events of one answer, the header before the first of them.

    The last event of all waits for what comes after the texts: one write less.
    """

    def __init__(self, answer: Answer, send: Send) -> None:
        self._answer = answer
        self._send = send
        self._num_going_on = len(answer.choices)
        self._told: set[int] = set()  # ids of the choices of which something was sent
        self._held = b""
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
        chunk = choice.reply.chunk(_piece(delta))
        event = _event(self._answer.frame.chunk([chunk], self._beside(choice, ends=ends)))
        self._num_going_on -= ends
        if self._num_going_on == 0 and id(choice) in self._told:
            self._held = event
            return
        await self._send({"type": "http.response.body", "body": event, "more_body": True})
        if id(choice) not in self._told:
            self._told.add(id(choice))
            choice.generation.first_piece_sent()

    def after_texts(self) -> bytes:
        """The events that come after all texts."""
        options = self._answer.options
        if not options.include_usage:
            return _DONE
        extras = self._answer.extras(usage=True, timing=options.timing)
        return _event(self._answer.frame.chunk([], extras)) + _DONE

    async def end(self, events: bytes) -> None:
        """Send the last of them."""
        await self._send({"type": "http.response.body", "body": self._held + events})

    def _beside(self, choice: Choice, *, ends: bool) -> Extras:
        """What is told beside a chunk, if anything."""
        options = self._answer.options
        told = NOTHING
        if options.continuous_usage:
            told = self._answer.extras(usage=True, timing=False)
        if options.timing and ends and not options.include_usage:
            told = Extras(told.usage, (choice.generation.timing,))
        return told


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
