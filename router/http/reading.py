"""Taking in a request's body, and refusing what is too long or does not come.

What every endpoint with a body does first. This module does not know what bodies mean.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from pdserve.errors import PayloadTooLarge, PdserveError
from pdserve.metrics import ServiceMetrics
from router.http.body import discard_rest, read_body
from router.http.config import HttpConfig
from router.http.errors import send_error


class BodyReader:
    """Reads bodies within the limits of ``config``; refusals are counted in ``metrics``."""

    def __init__(self, metrics: ServiceMetrics, config: HttpConfig) -> None:
        self._metrics = metrics
        self._config = config

    async def read(self, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """The body, or None if it was refused and the response has been sent."""
        config = self._config
        try:
            return await read_body(
                Headers(scope=scope),
                receive,
                max_bytes=config.max_body_bytes,
                timeout_s=config.body_timeout_s,
            )
        except PdserveError as error:
            await self._refuse(error, receive, send)
            return None

    async def _refuse(self, error: PdserveError, receive: Receive, send: Send) -> None:
        """The connection cannot be used again: the rest of the body may still be coming."""
        self._metrics.count_refused(error.code)
        await send_error(error, send, [(b"connection", b"close")], more=True)
        if isinstance(error, PayloadTooLarge):
            config = self._config
            await discard_rest(
                receive, max_bytes=config.max_linger_bytes, timeout_s=config.linger_s
            )
        await send({"type": "http.response.body", "body": b""})
