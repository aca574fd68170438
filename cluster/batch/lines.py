"""OpenAI's batch file format: one request a line in, one result a line out. Pure.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "request_id": "...",
     "body": {...}}, "error": null}

A refusal that came as an HTTP answer is a ``response`` with its status; a line that got no answer
(it is not a request, or nobody answered) has ``response`` null and an ``error`` with code and
message. ``id`` names the line by its number, so that a result finds its line also where a
``custom_id`` is missing or there twice. Not covered: embeddings and other endpoints, streams.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pdserve.errors import InvalidRequest, PdserveError

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
_ID_PREFIX = "batch_req_"
# What another try may mend; everything else is the line's own fault and stays as it is.
_PASSING_STATUSES = frozenset({408, 409, 425, 429, 499})
_LINES_OWN_FAULT = InvalidRequest.code


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request. ``number`` counts the lines of the file from 1; ``body`` is JSON."""

    number: int
    custom_id: str
    url: str
    body: bytes
    wants_timing: bool  # the line asks for the ledger itself


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that is no request. ``custom_id`` as far as there is one."""

    number: int
    custom_id: str | None
    error: InvalidRequest


@dataclass(frozen=True, slots=True)
class LineResult:
    """Exactly one of ``status`` (with ``body``) and ``error`` is there."""

    number: int
    custom_id: str | None
    status: int | None = None
    request_id: str = ""
    body: Any = None
    error_code: str = ""
    error_message: str = ""

    @property
    def is_answer(self) -> bool:
        return self.status == 200

    @property
    def may_pass(self) -> bool:
        """It failed through the service, not through its line: worth another try."""
        if self.status is None:
            return self.error_code != _LINES_OWN_FAULT
        return self.status in _PASSING_STATUSES or self.status >= 500

    @property
    def failure(self) -> str:
        """Code of the error, for counting; "" for an answer."""
        if self.is_answer:
            return ""
        if self.status is None:
            return self.error_code
        error = self.body.get("error") if isinstance(self.body, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        return str(code or f"status {self.status}")

    @classmethod
    def of_error(cls, number: int, custom_id: str | None, error: PdserveError) -> LineResult:
        return cls(number, custom_id, error_code=error.code, error_message=str(error))


def parse_line(number: int, raw: bytes) -> BatchLine | RefusedLine:
    """One line of the input. Unknown keys are ignored, as OpenAI does."""
    custom_id: str | None = None
    try:
        request = _object("line", raw)
        custom_id = _custom_id(request)
        method, url = request.get("method", "POST"), request.get("url")
        if method != "POST":
            raise InvalidRequest("method", f"must be POST, not {method!r}")
        if url not in ENDPOINTS:
            raise InvalidRequest("url", f"must be one of {', '.join(ENDPOINTS)}, not {url!r}")
        body = request.get("body")
        if not isinstance(body, dict):
            raise InvalidRequest("body", "must be an object")
        if body.get("stream"):
            raise InvalidRequest("body.stream", "a line of a batch gets one whole answer")
    except InvalidRequest as error:
        return RefusedLine(number, custom_id, error)
    encoded = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate (legal in JSON as an escape) has no UTF-8: the service tells the line so.
    data = encoded.encode("utf-8", errors="surrogatepass")
    return BatchLine(number, custom_id, str(url), data, bool(body.get("pdserve_timing")))


def encode_result(result: LineResult) -> bytes:
    """The line, with its newline."""
    response = error = None
    if result.status is not None:
        response = {
            "status_code": result.status,
            "request_id": result.request_id,
            "body": result.body,
        }
    else:
        error = {"code": result.error_code, "message": result.error_message}
    line = {
        "id": f"{_ID_PREFIX}{result.number}",
        "custom_id": result.custom_id,
        "response": response,
        "error": error,
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def decode_result(raw: bytes) -> LineResult:
    """A line this module wrote. Raises ValueError if it is not one."""
    line = json.loads(raw)
    try:
        number = int(str(line["id"]).removeprefix(_ID_PREFIX))
        custom_id, response, error = line["custom_id"], line["response"], line["error"]
        if response is not None:
            status, request_id = int(response["status_code"]), str(response["request_id"])
            return LineResult(number, custom_id, status, request_id, response["body"])
        code, message = str(error["code"]), str(error["message"])
        return LineResult(number, custom_id, error_code=code, error_message=message)
    except (KeyError, TypeError) as problem:
        raise ValueError(f"not a result of a batch: {problem!r}") from problem


def _object(what: str, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except UnicodeDecodeError as error:
        raise InvalidRequest(what, f"is not valid UTF-8: {error.reason}") from error
    except ValueError as error:
        raise InvalidRequest(what, f"is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(what, "is nested too deeply") from error
    if not isinstance(value, dict):
        raise InvalidRequest(what, "must be an object")
    return value


def _custom_id(request: dict[str, Any]) -> str:
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidRequest("custom_id", "is required, as text")
    return custom_id
