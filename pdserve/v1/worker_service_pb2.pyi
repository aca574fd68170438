from pdserve.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LocalSessionQuery(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LocalSessionPlace(_message.Message):
    __slots__ = ("socket_name",)
    SOCKET_NAME_FIELD_NUMBER: _ClassVar[int]
    socket_name: str
    def __init__(self, socket_name: _Optional[str] = ...) -> None: ...

class LocalSessionEnd(_message.Message):
    __slots__ = ("error_code", "text")
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    error_code: str
    text: str
    def __init__(self, error_code: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class FromWorker(_message.Message):
    __slots__ = ("hello", "step_report", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_REPORT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    step_report: StepReport
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., step_report: _Optional[_Union[StepReport, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class ToWorker(_message.Message):
    __slots__ = ("welcome", "submit", "cancel", "drain", "meet", "resend_cache")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    MEET_FIELD_NUMBER: _ClassVar[int]
    RESEND_CACHE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    submit: Submit
    cancel: Cancel
    drain: Drain
    meet: Meet
    resend_cache: ResendCache
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., meet: _Optional[_Union[Meet, _Mapping]] = ..., resend_cache: _Optional[_Union[ResendCache, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("router_id", "heartbeat_s")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    heartbeat_s: float
    def __init__(self, router_id: _Optional[str] = ..., heartbeat_s: _Optional[float] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("submit_seq", "leg", "attempt", "ticket")
    SUBMIT_SEQ_FIELD_NUMBER: _ClassVar[int]
    LEG_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    submit_seq: int
    leg: _types_pb2.Leg
    attempt: _types_pb2.Attempt
    ticket: _types_pb2.TransferTicket
    def __init__(self, submit_seq: _Optional[int] = ..., leg: _Optional[_Union[_types_pb2.Leg, str]] = ..., attempt: _Optional[_Union[_types_pb2.Attempt, _Mapping]] = ..., ticket: _Optional[_Union[_types_pb2.TransferTicket, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request_id", "epoch", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("grace_s",)
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    grace_s: float
    def __init__(self, grace_s: _Optional[float] = ...) -> None: ...

class Meet(_message.Message):
    __slots__ = ("peers",)
    PEERS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    def __init__(self, peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("worker_id", "incarnation", "endpoints", "layout")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    endpoints: _containers.RepeatedCompositeFieldContainer[_types_pb2.Endpoint]
    layout: _types_pb2.KvLayout
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., endpoints: _Optional[_Iterable[_Union[_types_pb2.Endpoint, _Mapping]]] = ..., layout: _Optional[_Union[_types_pb2.KvLayout, _Mapping]] = ...) -> None: ...

class ResendCache(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "incarnation", "role", "model_name", "model_fingerprint", "layout", "limits", "endpoints", "device", "kv_codings")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    KV_CODINGS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    incarnation: str
    role: _types_pb2.Role
    model_name: str
    model_fingerprint: str
    layout: _types_pb2.KvLayout
    limits: _types_pb2.WorkerLimits
    endpoints: _containers.RepeatedCompositeFieldContainer[_types_pb2.Endpoint]
    device: str
    kv_codings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., role: _Optional[_Union[_types_pb2.Role, str]] = ..., model_name: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., layout: _Optional[_Union[_types_pb2.KvLayout, _Mapping]] = ..., limits: _Optional[_Union[_types_pb2.WorkerLimits, _Mapping]] = ..., endpoints: _Optional[_Iterable[_Union[_types_pb2.Endpoint, _Mapping]]] = ..., device: _Optional[str] = ..., kv_codings: _Optional[_Iterable[str]] = ...) -> None: ...

class StepReport(_message.Message):
    __slots__ = ("events", "status", "cache")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[WorkerEvent]
    status: _types_pb2.WorkerStatus
    cache: CacheChanges
    def __init__(self, events: _Optional[_Iterable[_Union[WorkerEvent, _Mapping]]] = ..., status: _Optional[_Union[_types_pb2.WorkerStatus, _Mapping]] = ..., cache: _Optional[_Union[CacheChanges, _Mapping]] = ...) -> None: ...

class CacheChanges(_message.Message):
    __slots__ = ("seq", "stored", "evicted", "is_reset")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    IS_RESET_FIELD_NUMBER: _ClassVar[int]
    seq: int
    stored: bytes
    evicted: bytes
    is_reset: bool
    def __init__(self, seq: _Optional[int] = ..., stored: _Optional[bytes] = ..., evicted: _Optional[bytes] = ..., is_reset: _Optional[bool] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class WorkerEvent(_message.Message):
    __slots__ = ("admitted", "busy", "first_token", "tokens", "committed", "kv_failed", "failed", "already_committed", "ended", "met")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    KV_FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ALREADY_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    admitted: Admitted
    busy: Busy
    first_token: FirstToken
    tokens: Tokens
    committed: Committed
    kv_failed: KvFailed
    failed: Failed
    already_committed: AlreadyCommitted
    ended: Ended
    met: Met
    def __init__(self, admitted: _Optional[_Union[Admitted, _Mapping]] = ..., busy: _Optional[_Union[Busy, _Mapping]] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., kv_failed: _Optional[_Union[KvFailed, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., already_committed: _Optional[_Union[AlreadyCommitted, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., met: _Optional[_Union[Met, _Mapping]] = ...) -> None: ...

class Met(_message.Message):
    __slots__ = ("worker_id", "incarnation", "transport", "detail", "bytes_per_s", "num_bytes")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    transport: str
    detail: str
    bytes_per_s: float
    num_bytes: int
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., transport: _Optional[str] = ..., detail: _Optional[str] = ..., bytes_per_s: _Optional[float] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("request_id", "epoch", "leg")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEG_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    leg: _types_pb2.Leg
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., leg: _Optional[_Union[_types_pb2.Leg, str]] = ...) -> None: ...

class Busy(_message.Message):
    __slots__ = ("request_id", "epoch", "leg", "free_blocks")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEG_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    leg: _types_pb2.Leg
    free_blocks: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., leg: _Optional[_Union[_types_pb2.Leg, str]] = ..., free_blocks: _Optional[int] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("token", "timing")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    token: _types_pb2.TokenEvent
    timing: _types_pb2.PrefillTiming
    def __init__(self, token: _Optional[_Union[_types_pb2.TokenEvent, _Mapping]] = ..., timing: _Optional[_Union[_types_pb2.PrefillTiming, _Mapping]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("tokens", "timing")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_types_pb2.TokenEvent]
    timing: _types_pb2.DecodeTiming
    def __init__(self, tokens: _Optional[_Iterable[_Union[_types_pb2.TokenEvent, _Mapping]]] = ..., timing: _Optional[_Union[_types_pb2.DecodeTiming, _Mapping]] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("request_id", "ticket_id", "epoch", "timing")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    ticket_id: str
    epoch: int
    timing: _types_pb2.KvTiming
    def __init__(self, request_id: _Optional[str] = ..., ticket_id: _Optional[str] = ..., epoch: _Optional[int] = ..., timing: _Optional[_Union[_types_pb2.KvTiming, _Mapping]] = ...) -> None: ...

class KvFailed(_message.Message):
    __slots__ = ("request_id", "ticket_id", "epoch", "code", "detail")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    ticket_id: str
    epoch: int
    code: str
    detail: str
    def __init__(self, request_id: _Optional[str] = ..., ticket_id: _Optional[str] = ..., epoch: _Optional[int] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("request_id", "epoch", "leg", "code", "detail")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEG_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    leg: _types_pb2.Leg
    code: str
    detail: str
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., leg: _Optional[_Union[_types_pb2.Leg, str]] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class AlreadyCommitted(_message.Message):
    __slots__ = ("request_id", "epoch", "committed_epoch")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    committed_epoch: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., committed_epoch: _Optional[int] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("request_id", "epoch", "leg")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEG_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    leg: _types_pb2.Leg
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., leg: _Optional[_Union[_types_pb2.Leg, str]] = ...) -> None: ...
