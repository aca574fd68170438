"""The tree of errors. Each leaf says what failed and maps to one HTTP status and one gRPC code.

    PdserveError
    ├── ConfigError                an option is unknown, out of range or contradicts another
    ├── ModelFileError             a model file is missing, truncated, unsupported (named)
    ├── RequestError               the fault of one request
    │   ├── InvalidRequest         400 INVALID_ARGUMENT    field and limit named
    │   │   └── ContextTooLong     400 INVALID_ARGUMENT    prompt and answer over the context
    │   ├── PayloadTooLarge        413 RESOURCE_EXHAUSTED
    │   ├── UnknownModel           404 NOT_FOUND
    │   ├── UnknownRequest         404 NOT_FOUND           its ledger is not kept (any more)
    │   ├── Overloaded             429 RESOURCE_EXHAUSTED  with retry_after_s
    │   ├── DeadlineExceeded       504 DEADLINE_EXCEEDED
    │   └── RequestCancelled       499 CANCELLED           the client left
    ├── ServiceError               the service cannot do its part just now
    │   ├── NoWorkers              503 UNAVAILABLE         a pool is empty for too long
    │   ├── ShuttingDown           503 UNAVAILABLE
    │   ├── WorkerLost             503 UNAVAILABLE         a worker died; the router may try again
    │   ├── RetriesExhausted       503 UNAVAILABLE         every allowed attempt failed
    │   └── EngineFailure          500 INTERNAL            a step raised; names the worker
    ├── TransferError              the KV did not arrive; the router may try again
    │   ├── FrameCorrupt           checksum, length or header wrong
    │   ├── TicketUnknown          never submitted here, or released
    │   ├── TicketExpired
    │   ├── StaleEpoch             a newer attempt owns the ticket
    │   ├── LayoutMismatch         names the first field that differs
    │   ├── PeerBusy               requests go before a measurement
    │   ├── PeerUnreachable        could not connect, or the connection broke
    │   └── PeerSilent             nothing came before the deadline
    └── ProtocolError              a peer broke the protocol; its session is closed
        ├── IncompatibleWorker     other protocol version, model or layout; refused at joining
        └── UnknownMessage

HTTP statuses and gRPC code names live on the classes; pdserve/rpc/status.py turns names into
grpc.StatusCode, router/http maps statuses. Handlers: RequestError and ServiceError reach the
client; TransferError is handled by the router (another attempt) and reaches the client only
inside RetriesExhausted; ProtocolError closes one session.
"""

from __future__ import annotations

from typing import Self


class PdserveError(Exception):
    """Root. ``code`` is the stable machine-readable name sent to clients and over the wire.

    ``next_step``: what a person who runs the service can do about it; told by the command line and
    in log lines, never sent to clients.
    """

    http_status = 500
    grpc_code = "INTERNAL"
    code = "internal_error"
    openai_type = "server_error"
    next_step = ""

    def advise(self, next_step: str) -> Self:
        """The same error with better advice than that of its class."""
        self.next_step = next_step
        return self


class ConfigError(PdserveError):
    code = "config_error"


class ModelFileError(PdserveError):
    code = "model_file_error"


class RequestError(PdserveError):
    pass


class InvalidRequest(RequestError):
    """A field of a request is unusable. Names the field and what would be right."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    code = "invalid_request"
    openai_type = "invalid_request_error"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class ContextTooLong(InvalidRequest):
    """Prompt, or prompt and answer, are longer than the context. The code is OpenAI's."""

    code = "context_length_exceeded"


class PayloadTooLarge(RequestError):
    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"
    code = "payload_too_large"
    openai_type = "invalid_request_error"


class UnknownModel(RequestError):
    http_status = 404
    grpc_code = "NOT_FOUND"
    code = "model_not_found"
    openai_type = "invalid_request_error"


class UnknownRequest(RequestError):
    """The router does not keep (or never had) a request of that name."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    code = "request_not_found"
    next_step = "--trace-requests of the router says how many are kept; `last` is the newest"
    openai_type = "invalid_request_error"


class UnknownDecision(UnknownRequest):
    """No routing decision is kept of a request of that name."""

    code = "decision_not_found"
    next_step = "--explain-decisions of the router says how many are kept; `last` is the newest"


class Overloaded(RequestError):
    """The queue is full or the deadline cannot be met."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    code = "overloaded"
    next_step = "send again later; if it lasts, add workers or raise --max-queue"
    openai_type = "rate_limit_error"

    def __init__(self, problem: str, retry_after_s: float) -> None:
        super().__init__(problem)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    code = "deadline_exceeded"
    openai_type = "timeout_error"


class RequestCancelled(RequestError):
    http_status = 499
    grpc_code = "CANCELLED"
    code = "cancelled"


class ServiceError(PdserveError):
    http_status = 503
    grpc_code = "UNAVAILABLE"
    code = "unavailable"


class NoWorkers(ServiceError):
    code = "no_workers"
    next_step = "start a worker of that role; `pdserve status` lists those that have joined"


class ShuttingDown(ServiceError):
    code = "shutting_down"


class WorkerLost(ServiceError):
    code = "worker_lost"


class RetriesExhausted(ServiceError):
    code = "retries_exhausted"
    next_step = "look for the request's id in the logs of the workers it ran on"


class EngineFailure(ServiceError):
    http_status = 500
    grpc_code = "INTERNAL"
    code = "engine_failure"
    next_step = "the log of the worker it names has the traceback"


class TransferError(PdserveError):
    http_status = 503
    grpc_code = "UNAVAILABLE"
    code = "transfer_error"


class FrameCorrupt(TransferError):
    code = "frame_corrupt"


class TicketUnknown(TransferError):
    code = "ticket_unknown"


class TicketExpired(TransferError):
    code = "ticket_expired"


class StaleEpoch(TransferError):
    code = "stale_epoch"


class LayoutMismatch(TransferError):
    code = "layout_mismatch"


class PeerUnreachable(TransferError):
    code = "peer_unreachable"
    next_step = "is the peer up, and can this host reach that address? see --listen and --advertise"


class PeerBusy(TransferError):
    """A measurement only: requests go first."""

    code = "peer_busy"


class PeerSilent(TransferError):
    code = "peer_silent"
    next_step = "the peer or the network between hangs: see its log and `pdserve status`"


class ProtocolError(PdserveError):
    grpc_code = "FAILED_PRECONDITION"
    code = "protocol_error"


class IncompatibleWorker(ProtocolError):
    code = "incompatible_worker"
    next_step = (
        "start it with the same version, --model, --dtype and --block-size as the others; "
        "`pdserve config show ROLE` tells what a role is given"
    )


class UnknownMessage(ProtocolError):
    code = "unknown_message"


def all_errors() -> dict[str, type[PdserveError]]:
    """Every class of this file by its ``code``: what the codec rebuilds errors from."""
    found: dict[str, type[PdserveError]] = {}
    pending: list[type[PdserveError]] = [PdserveError]
    while pending:
        cls = pending.pop()
        if cls.__module__ == __name__:
            found.setdefault(cls.code, cls)
        pending.extend(cls.__subclasses__())
    return found
