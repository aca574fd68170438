"""Reading a request's body within limits, and decoding it into a schema.

Whatever is wrong is said as InvalidRequest with the path of the field (``messages[0].content``).
This module does not know the schemas. Not covered: compressed bodies.
"""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive

from pdserve.errors import InvalidRequest, PayloadTooLarge, RequestCancelled

_Schema = TypeVar("_Schema", bound=msgspec.Struct)

# msgspec: "Expected `int`, got `str` - at `$.messages[0].content`"
_PATH = re.compile(r"^(?P<problem>.*) - at `(?:key in )?\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")


async def read_body(
    headers: Headers, receive: Receive, *, max_bytes: int, timeout_s: float
) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: it is (or says that it is) longer than ``max_bytes``; the rest is not read.
        InvalidRequest: it was not complete after ``timeout_s``.
        RequestCancelled: the client left.
    """
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise PayloadTooLarge(f"body: {declared} bytes, the limit is {max_bytes}")
    parts = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestCancelled("the client left before its request was complete")
                parts += message.get("body", b"")
                if len(parts) > max_bytes:
                    raise PayloadTooLarge(f"body: more than the limit of {max_bytes} bytes")
                if not message.get("more_body", False):
                    return bytes(parts)
    except TimeoutError as error:
        raise InvalidRequest("body", f"was not complete after {timeout_s:g} s") from error


async def discard_rest(receive: Receive, *, max_bytes: int, timeout_s: float) -> None:
    """Let a client finish sending what nobody keeps, within limits.

    Closing while data is still coming resets the connection, and many clients then lose the answer
    that says why.
    """
    num_bytes = 0
    try:
        async with asyncio.timeout(timeout_s):
            while num_bytes < max_bytes:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def decode_body(body: bytes, schema: type[_Schema]) -> _Schema:
    """The body as ``schema``; fields the schema does not have are ignored, as OpenAI does.

    Raises:
        InvalidRequest: not UTF-8, not JSON, or a field is of a wrong type.
    """
    try:
        return msgspec.json.decode(body, type=schema)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("body", f"is not valid UTF-8: {error.reason}") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest("body", f"is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("body", "is nested too deeply") from error


def _invalid_field(message: str) -> InvalidRequest:
    located = _PATH.match(message)
    problem, path = (located["problem"], located["path"]) if located else (message, "")
    missing = _MISSING.match(problem)
    if missing:
        path = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidRequest(path, "is required")
    return InvalidRequest(path or "body", problem[:1].lower() + problem[1:])
