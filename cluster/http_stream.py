"""Streams one completion from the OpenAI HTTP face with the standard library alone.

For the command line. Programs use an OpenAI client or router/client.py.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from pdserve.errors import PeerUnreachable, ServiceError


def stream_completion(
    url: str, path: str, body: Mapping[str, Any], timeout_s: float
) -> Iterator[dict[str, Any]]:
    """The chunks of ``POST url/path``, until ``[DONE]``.

    Raises:
        PeerUnreachable: nobody listens there, or the stream broke off.
        ServiceError: the service answered with an error, before or within the stream.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request(
            "POST",
            parts.path.rstrip("/") + path,
            json.dumps({**body, "stream": True}),
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ServiceError(_error_text(response.read()))
        yield from _events(response)
    except (OSError, http.client.HTTPException) as error:
        raise PeerUnreachable(f"{url}: {error}").advise(
            "is the service up (`pdserve serve`)? give its address with --http-url"
        ) from error
    finally:
        connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        text = line.decode("utf-8").strip()
        if not text.startswith("data:"):
            continue
        data = text.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise ServiceError(str(event["error"].get("message", event["error"])))
        yield event
    raise PeerUnreachable("the stream ended before [DONE]")


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode("utf-8", errors="replace")
