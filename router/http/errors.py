"""Errors as OpenAI clients expect them: status, body, headers.

Status, type and code come from the class (pdserve/errors.py). This module does not decide when an
error is sent. Not covered: translations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
from starlette.types import Send

from pdserve.errors import InvalidRequest, Overloaded, PdserveError, UnknownModel

HeaderList = list[tuple[bytes, bytes]]


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


def error_body(error: PdserveError) -> bytes:
    """The JSON object, the same in a response and in a stream."""
    detail = ErrorDetail(
        message=str(error), type=error.openai_type, param=_param(error), code=error.code
    )
    return msgspec.json.encode(ErrorBody(detail))


def plain_error_body(message: str, error_type: str, code: str) -> bytes:
    """For what is no PdserveError: a path or method that does not exist, a bug."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(message, error_type, None, code)))


def error_headers(error: PdserveError) -> HeaderList:
    if isinstance(error, Overloaded):
        return [(b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode())]
    return []


async def send_error(
    error: PdserveError,
    send: Send,
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    more: bool = False,
) -> None:
    """``more``: the caller ends the response (with an empty body)."""
    all_headers = [*error_headers(error), *headers]
    await send_json(send, error.http_status, error_body(error), all_headers, more=more)


async def send_json(
    send: Send, status: int, body: bytes, headers: HeaderList, *, more: bool = False
) -> None:
    """A whole JSON response, but for its end if the caller has ``more`` to do first."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _param(error: PdserveError) -> str | None:
    match error:
        case InvalidRequest():
            return error.field
        case UnknownModel():
            return "model"
        case _:
            return None
