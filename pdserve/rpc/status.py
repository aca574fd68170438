"""Errors of pdserve/errors.py as gRPC statuses and back, and the ledger in trailing metadata.

The status code and text are for any gRPC client. Trailing metadata says the rest, so that a client
of this project gets back the class that was raised:

    pdserve-error-code     the ``code`` of the class
    pdserve-error-field    the field at fault (InvalidRequest)
    retry-after-ms         when to try again (Overloaded), milliseconds
    pdserve-timing         RequestTiming and ttft_s as a JSON object

A status without the first (made by gRPC itself or by another server) becomes the class that stands
for its code.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable

import grpc

from pdserve.errors import (
    DeadlineExceeded,
    IncompatibleWorker,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    PdserveError,
    ProtocolError,
    RequestCancelled,
    ServiceError,
    UnknownModel,
    WorkerLost,
    all_errors,
)
from pdserve.request_timing import RequestTiming

ERROR_CODE = "pdserve-error-code"
ERROR_FIELD = "pdserve-error-field"
RETRY_AFTER = "retry-after-ms"
TIMING = "pdserve-timing"

Metadata = tuple[tuple[str, str], ...]

# Details travel as a header: all of them together must stay below the peer's limit.
_MAX_DETAILS_CHARS = 2000
_MAX_FIELD_CHARS = 200

_BY_STATUS: dict[grpc.StatusCode, type[PdserveError]] = {
    grpc.StatusCode.NOT_FOUND: UnknownModel,
    grpc.StatusCode.RESOURCE_EXHAUSTED: PayloadTooLarge,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: RequestCancelled,
    grpc.StatusCode.UNAVAILABLE: ServiceError,
    grpc.StatusCode.FAILED_PRECONDITION: ProtocolError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
}


def status_code(error: PdserveError) -> grpc.StatusCode:
    return grpc.StatusCode[error.grpc_code]


def details(error: PdserveError) -> str:
    """The text of the status; the name of the error where it has none."""
    text = str(error) or error.code
    return text if len(text) <= _MAX_DETAILS_CHARS else text[: _MAX_DETAILS_CHARS - 1] + "…"


def error_metadata(error: PdserveError) -> Metadata:
    entries = [(ERROR_CODE, error.code)]
    if isinstance(error, InvalidRequest):
        entries.append((ERROR_FIELD, _header_text(error.field[:_MAX_FIELD_CHARS])))
    if isinstance(error, Overloaded):
        entries.append((RETRY_AFTER, str(math.ceil(error.retry_after_s * 1000))))
    return tuple(entries)


def timing_metadata(timing: RequestTiming) -> Metadata:
    ledger = {**dataclasses.asdict(timing), "ttft_s": timing.ttft_s}
    return ((TIMING, json.dumps(ledger, separators=(",", ":"))),)


def timing_from_metadata(metadata: Metadata) -> RequestTiming | None:
    """The ledger, or None if there is none. Fields that are not known here are left out.

    Raises:
        ProtocolError: what is there is no ledger.
    """
    text = _value(metadata, TIMING)
    if text is None:
        return None
    try:
        ledger = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProtocolError(f"{TIMING}: {error}") from error
    if not isinstance(ledger, dict):
        raise ProtocolError(f"{TIMING}: not an object")
    names = {field.name for field in dataclasses.fields(RequestTiming)}
    return RequestTiming(**{name: value for name, value in ledger.items() if name in names})


def error_from_status(code: grpc.StatusCode, text: str, metadata: Metadata) -> PdserveError:
    """The error that a status stands for. ``code`` is not OK."""
    name = _value(metadata, ERROR_CODE)
    cls = all_errors().get(name) if name is not None else None
    if cls is None:
        cls = InvalidRequest if code is grpc.StatusCode.INVALID_ARGUMENT else _BY_STATUS.get(code)
    if cls is None:
        return PdserveError(f"{code.name}: {text}")
    if issubclass(cls, InvalidRequest):
        field = _value(metadata, ERROR_FIELD) or "request"
        return cls(field, text.removeprefix(f"{field}: "))
    if issubclass(cls, Overloaded):
        return cls(text, _retry_after_s(metadata))
    return cls(text)


def session_end(code: grpc.StatusCode, text: str, metadata: Metadata, router: str) -> PdserveError:
    """Why a worker's session that ended with this status did, as its ``receive`` raises it."""
    if code is grpc.StatusCode.OK:
        return WorkerLost(f"router {router} ended the session")
    if code is not grpc.StatusCode.FAILED_PRECONDITION:
        return WorkerLost(f"router {router}: {code.name}: {text}")
    error = error_from_status(code, text, metadata)
    return error if isinstance(error, ProtocolError) else IncompatibleWorker(text)


def plain_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """Metadata in gRPC's several forms as pairs of text; binary entries are left out."""
    pairs = tuple((key, value) for key, value in metadata or ())
    return tuple((key, value) for key, value in pairs if isinstance(value, str))


def _header_text(text: str) -> str:
    """Metadata values are printable ASCII; a field's name may hold what a client wrote."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)


def _value(metadata: Metadata, key: str) -> str | None:
    return next((value for name, value in metadata if name == key), None)


def _retry_after_s(metadata: Metadata) -> float:
    text = _value(metadata, RETRY_AFTER) or ""
    return int(text) / 1000 if text.isdecimal() else 1.0
