"""/tokenize and /detokenize: text or chat to token ids and back, without generating anything.

The bodies are those vLLM's server takes and gives. Texts are encoded as they would be for a
generation. This module does not know limits of the model but its vocabulary: a text that is too
long for a generation is still counted. Not covered: tools and templates of the client's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from pdserve.errors import InvalidRequest, PdserveError
from pdserve.metrics import ServiceMetrics
from router.http.body import decode_body
from router.http.errors import send_error, send_json
from router.http.jobs import check_model
from router.http.messages import chat_messages
from router.http.reading import BodyReader
from router.http.schemas import DetokenizeRequest, TokenizeRequest
from router.prompt_limits import check_token_ids
from router.text_generation import TextService

_Body = TypeVar("_Body", bound=msgspec.Struct)


class TokenizeAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """``token_strs``: the text of each token, if asked for; U+FFFD where it is no whole one."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: tuple[str, ...] | None = None


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    prompt: str


class TextEndpoint(Generic[_Body]):
    """ASGI application: one body in, one answer out."""

    def __init__(
        self,
        schema: type[_Body],
        answer: Callable[[_Body], Awaitable[msgspec.Struct]],
        reader: BodyReader,
        metrics: ServiceMetrics,
    ) -> None:
        self._schema = schema
        self._answer = answer
        self._reader = reader
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await self._reader.read(scope, receive, send)
        if raw is None:
            return
        try:
            answer = await self._answer(decode_body(raw, self._schema))
        except PdserveError as error:
            self._metrics.count_refused(error.code)
            await send_error(error, send)
            return
        await send_json(send, 200, msgspec.json.encode(answer), [])


class Tokenizing:
    """What the two endpoints answer."""

    def __init__(self, service: TextService) -> None:
        self._service = service

    async def tokenize(self, body: TokenizeRequest) -> TokenizeAnswer:
        """Raises InvalidRequest, UnknownModel."""
        model, text = self._service.model, self._service.text_model
        check_model(body.model, model.name)
        token_ids = await self._encode(body)
        strings = tuple(
            text.token_bytes(token_id).decode(errors="replace") for token_id in token_ids
        )
        wanted = strings if body.return_token_strs else None
        return TokenizeAnswer(len(token_ids), model.max_model_len, token_ids, wanted)

    async def detokenize(self, body: DetokenizeRequest) -> DetokenizeAnswer:
        """Raises InvalidRequest, UnknownModel."""
        model = self._service.model
        check_model(body.model, model.name)
        token_ids = tuple(body.tokens)
        check_token_ids("tokens", token_ids, model.vocab_size)
        return DetokenizeAnswer(self._service.text_model.decode(token_ids))

    async def _encode(self, body: TokenizeRequest) -> tuple[int, ...]:
        text = self._service.text_model
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("prompt", "exactly one of prompt and messages is needed")
        if body.prompt is not None:
            if body.add_special_tokens is False:
                return await text.encode_rendered(body.prompt)
            return await text.encode_prompt(body.prompt)
        if body.add_special_tokens:
            raise InvalidRequest("add_special_tokens", "only false is supported with messages")
        rendered = text.render_chat(
            chat_messages(body.messages or []),
            add_generation_prompt=body.add_generation_prompt is not False,
        )
        return await text.encode_rendered(rendered)
