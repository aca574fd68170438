"""X-Request-ID, in and out: every response repeats the client's id, or tells the one it got.

A client's id is kept if it is usable: up to 96 letters, digits and ``._:/+=-``; any other is
replaced. Clients may repeat their ids, so inside the service an id has a unique ending. This module
does not know endpoints.
"""

from __future__ import annotations

import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pdserve.types import RequestId
from router.text_job import new_request_id

_USABLE = re.compile(r"[A-Za-z0-9._:/+=-]{1,96}")
_INTERNAL_KEY = "pdserve.request_id"


class RequestIds:
    """ASGI application around another: names each request, and says the name in its response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        if _USABLE.fullmatch(given):
            told, inside = given, RequestId(f"{given}-{uuid4().hex[:12]}")
        else:
            told = inside = new_request_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = told
            await send(message)

        await self._app({**scope, _INTERNAL_KEY: inside}, receive, send_with_id)


def internal_request_id(scope: Scope) -> RequestId:
    """What the request is called inside the service."""
    return RequestId(scope[_INTERNAL_KEY])
