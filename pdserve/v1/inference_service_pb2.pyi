from pdserve.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "model", "text", "token_ids", "messages", "sampling", "stop", "priority", "timeout_s", "cache_salt", "num_answers", "best_of")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    NUM_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    BEST_OF_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    text: str
    token_ids: TokenIds
    messages: ChatMessages
    sampling: SamplingOptions
    stop: _containers.RepeatedScalarFieldContainer[str]
    priority: int
    timeout_s: float
    cache_salt: str
    num_answers: int
    best_of: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., messages: _Optional[_Union[ChatMessages, _Mapping]] = ..., sampling: _Optional[_Union[SamplingOptions, _Mapping]] = ..., stop: _Optional[_Iterable[str]] = ..., priority: _Optional[int] = ..., timeout_s: _Optional[float] = ..., cache_salt: _Optional[str] = ..., num_answers: _Optional[int] = ..., best_of: _Optional[int] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ChatMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content", "name", "tool_calls", "tool_call_id")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    name: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., name: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "function", "arguments_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    id: str
    function: str
    arguments_json: str
    def __init__(self, id: _Optional[str] = ..., function: _Optional[str] = ..., arguments_json: _Optional[str] = ...) -> None: ...

class SamplingOptions(_message.Message):
    __slots__ = ("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop_token_ids", "ignore_eos", "num_logprobs")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.RepeatedCompositeFieldContainer[TokenBias]
    seed: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    num_logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Iterable[_Union[TokenBias, _Mapping]]] = ..., seed: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., num_logprobs: _Optional[int] = ...) -> None: ...

class TokenBias(_message.Message):
    __slots__ = ("token_id", "bias")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    bias: float
    def __init__(self, token_id: _Optional[int] = ..., bias: _Optional[float] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text_delta", "token_ids", "logprobs", "finish_reason", "usage", "answer_index")
    TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_INDEX_FIELD_NUMBER: _ClassVar[int]
    text_delta: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[SampledToken]
    finish_reason: _types_pb2.FinishReason
    usage: Usage
    answer_index: int
    def __init__(self, text_delta: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[SampledToken, _Mapping]]] = ..., finish_reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., answer_index: _Optional[int] = ...) -> None: ...

class SampledToken(_message.Message):
    __slots__ = ("chosen", "top")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    chosen: TokenText
    top: _containers.RepeatedCompositeFieldContainer[TokenText]
    def __init__(self, chosen: _Optional[_Union[TokenText, _Mapping]] = ..., top: _Optional[_Iterable[_Union[TokenText, _Mapping]]] = ...) -> None: ...

class TokenText(_message.Message):
    __slots__ = ("token_id", "text", "utf8", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    UTF8_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    text: str
    utf8: bytes
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., text: _Optional[str] = ..., utf8: _Optional[bytes] = ..., logprob: _Optional[float] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("num_prompt_tokens", "num_completion_tokens", "num_cached_tokens")
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    def __init__(self, num_prompt_tokens: _Optional[int] = ..., num_completion_tokens: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "fingerprint", "vocab_size", "max_model_len", "eos_token_ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ClusterStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterStatusResponse(_message.Message):
    __slots__ = ("can_serve", "mode", "model", "workers", "num_queued", "num_in_flight", "num_tickets", "draining", "kv_pairs", "problem", "refused")
    CAN_SERVE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_FIELD_NUMBER: _ClassVar[int]
    NUM_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_TICKETS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    KV_PAIRS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    can_serve: bool
    mode: str
    model: Model
    workers: _containers.RepeatedCompositeFieldContainer[WorkerState]
    num_queued: int
    num_in_flight: int
    num_tickets: int
    draining: bool
    kv_pairs: _containers.RepeatedCompositeFieldContainer[KvPair]
    problem: str
    refused: _containers.RepeatedCompositeFieldContainer[RefusedWorker]
    def __init__(self, can_serve: _Optional[bool] = ..., mode: _Optional[str] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., workers: _Optional[_Iterable[_Union[WorkerState, _Mapping]]] = ..., num_queued: _Optional[int] = ..., num_in_flight: _Optional[int] = ..., num_tickets: _Optional[int] = ..., draining: _Optional[bool] = ..., kv_pairs: _Optional[_Iterable[_Union[KvPair, _Mapping]]] = ..., problem: _Optional[str] = ..., refused: _Optional[_Iterable[_Union[RefusedWorker, _Mapping]]] = ...) -> None: ...

class RefusedWorker(_message.Message):
    __slots__ = ("worker_id", "peer", "problem")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    peer: str
    problem: str
    def __init__(self, worker_id: _Optional[str] = ..., peer: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class KvPair(_message.Message):
    __slots__ = ("prefill_worker", "decode_worker", "transport", "num_reads", "num_bytes", "read_bytes_per_s", "probe_bytes_per_s", "num_fallbacks", "probe_bytes")
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    DECODE_WORKER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    NUM_READS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    PROBE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    NUM_FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    PROBE_BYTES_FIELD_NUMBER: _ClassVar[int]
    prefill_worker: str
    decode_worker: str
    transport: str
    num_reads: int
    num_bytes: int
    read_bytes_per_s: float
    probe_bytes_per_s: float
    num_fallbacks: int
    probe_bytes: int
    def __init__(self, prefill_worker: _Optional[str] = ..., decode_worker: _Optional[str] = ..., transport: _Optional[str] = ..., num_reads: _Optional[int] = ..., num_bytes: _Optional[int] = ..., read_bytes_per_s: _Optional[float] = ..., probe_bytes_per_s: _Optional[float] = ..., num_fallbacks: _Optional[int] = ..., probe_bytes: _Optional[int] = ...) -> None: ...

class WorkerState(_message.Message):
    __slots__ = ("worker_id", "incarnation", "role", "device", "limits", "status", "endpoints", "num_legs", "draining", "peer", "silent")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    NUM_LEGS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    role: _types_pb2.Role
    device: str
    limits: _types_pb2.WorkerLimits
    status: _types_pb2.WorkerStatus
    endpoints: _containers.RepeatedCompositeFieldContainer[_types_pb2.Endpoint]
    num_legs: int
    draining: bool
    peer: str
    silent: bool
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., role: _Optional[_Union[_types_pb2.Role, str]] = ..., device: _Optional[str] = ..., limits: _Optional[_Union[_types_pb2.WorkerLimits, _Mapping]] = ..., status: _Optional[_Union[_types_pb2.WorkerStatus, _Mapping]] = ..., endpoints: _Optional[_Iterable[_Union[_types_pb2.Endpoint, _Mapping]]] = ..., num_legs: _Optional[int] = ..., draining: _Optional[bool] = ..., peer: _Optional[str] = ..., silent: _Optional[bool] = ...) -> None: ...

class GetTraceRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class GetTraceResponse(_message.Message):
    __slots__ = ("request_id", "outcome", "timing")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    outcome: str
    timing: RequestTiming
    def __init__(self, request_id: _Optional[str] = ..., outcome: _Optional[str] = ..., timing: _Optional[_Union[RequestTiming, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "policy", "salted", "decisions")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SALTED_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    policy: str
    salted: bool
    decisions: _containers.RepeatedCompositeFieldContainer[RouteDecision]
    def __init__(self, request_id: _Optional[str] = ..., policy: _Optional[str] = ..., salted: _Optional[bool] = ..., decisions: _Optional[_Iterable[_Union[RouteDecision, _Mapping]]] = ...) -> None: ...

class RouteDecision(_message.Message):
    __slots__ = ("attempt", "at_s", "waits", "prefill_place", "place_reason", "num_context_tokens", "expected_tokens", "max_tokens", "num_workers", "candidates", "num_left_out", "ended")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PLACE_FIELD_NUMBER: _ClassVar[int]
    PLACE_REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    NUM_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    at_s: float
    waits: str
    prefill_place: str
    place_reason: str
    num_context_tokens: int
    expected_tokens: int
    max_tokens: int
    num_workers: int
    candidates: _containers.RepeatedCompositeFieldContainer[RouteCandidate]
    num_left_out: int
    ended: str
    def __init__(self, attempt: _Optional[int] = ..., at_s: _Optional[float] = ..., waits: _Optional[str] = ..., prefill_place: _Optional[str] = ..., place_reason: _Optional[str] = ..., num_context_tokens: _Optional[int] = ..., expected_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., num_workers: _Optional[int] = ..., candidates: _Optional[_Iterable[_Union[RouteCandidate, _Mapping]]] = ..., num_left_out: _Optional[int] = ..., ended: _Optional[str] = ...) -> None: ...

class RouteCandidate(_message.Message):
    __slots__ = ("worker_id", "task", "chosen", "why", "excluded", "remarks", "parts", "cached_tokens", "tokens_ahead", "num_legs", "free_blocks")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    REMARKS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    NUM_LEGS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    task: str
    chosen: bool
    why: str
    excluded: _containers.RepeatedScalarFieldContainer[str]
    remarks: _containers.RepeatedScalarFieldContainer[str]
    parts: _containers.RepeatedCompositeFieldContainer[CostPart]
    cached_tokens: int
    tokens_ahead: int
    num_legs: int
    free_blocks: int
    def __init__(self, worker_id: _Optional[str] = ..., task: _Optional[str] = ..., chosen: _Optional[bool] = ..., why: _Optional[str] = ..., excluded: _Optional[_Iterable[str]] = ..., remarks: _Optional[_Iterable[str]] = ..., parts: _Optional[_Iterable[_Union[CostPart, _Mapping]]] = ..., cached_tokens: _Optional[int] = ..., tokens_ahead: _Optional[int] = ..., num_legs: _Optional[int] = ..., free_blocks: _Optional[int] = ...) -> None: ...

class CostPart(_message.Message):
    __slots__ = ("name", "cost_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COST_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    cost_s: float
    def __init__(self, name: _Optional[str] = ..., cost_s: _Optional[float] = ...) -> None: ...

class RequestTiming(_message.Message):
    __slots__ = ("receive_s", "tokenize_s", "queue_s", "prefill_queue_s", "prefill_compute_s", "first_token_return_s", "first_token_send_s", "kv_bytes", "kv_tokens", "kv_transport", "kv_transfer_s", "kv_exposed_s", "decode_queue_s", "decode_first_step_s", "token_return_s", "total_s", "prefill_worker", "decode_worker", "num_dispatches", "num_prompt_tokens", "num_generated_tokens", "prefill_cached_tokens", "kv_cached_tokens", "prefill_place", "explanation", "kv_coding", "before_face_s", "kv_passed_over")
    RECEIVE_S_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_RETURN_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_SEND_S_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    KV_EXPOSED_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIRST_STEP_S_FIELD_NUMBER: _ClassVar[int]
    TOKEN_RETURN_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    DECODE_WORKER_FIELD_NUMBER: _ClassVar[int]
    NUM_DISPATCHES_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PLACE_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    KV_CODING_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FACE_S_FIELD_NUMBER: _ClassVar[int]
    KV_PASSED_OVER_FIELD_NUMBER: _ClassVar[int]
    receive_s: float
    tokenize_s: float
    queue_s: float
    prefill_queue_s: float
    prefill_compute_s: float
    first_token_return_s: float
    first_token_send_s: float
    kv_bytes: int
    kv_tokens: int
    kv_transport: str
    kv_transfer_s: float
    kv_exposed_s: float
    decode_queue_s: float
    decode_first_step_s: float
    token_return_s: float
    total_s: float
    prefill_worker: str
    decode_worker: str
    num_dispatches: int
    num_prompt_tokens: int
    num_generated_tokens: int
    prefill_cached_tokens: int
    kv_cached_tokens: int
    prefill_place: str
    explanation: str
    kv_coding: str
    before_face_s: float
    kv_passed_over: str
    def __init__(self, receive_s: _Optional[float] = ..., tokenize_s: _Optional[float] = ..., queue_s: _Optional[float] = ..., prefill_queue_s: _Optional[float] = ..., prefill_compute_s: _Optional[float] = ..., first_token_return_s: _Optional[float] = ..., first_token_send_s: _Optional[float] = ..., kv_bytes: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., kv_transport: _Optional[str] = ..., kv_transfer_s: _Optional[float] = ..., kv_exposed_s: _Optional[float] = ..., decode_queue_s: _Optional[float] = ..., decode_first_step_s: _Optional[float] = ..., token_return_s: _Optional[float] = ..., total_s: _Optional[float] = ..., prefill_worker: _Optional[str] = ..., decode_worker: _Optional[str] = ..., num_dispatches: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., prefill_cached_tokens: _Optional[int] = ..., kv_cached_tokens: _Optional[int] = ..., prefill_place: _Optional[str] = ..., explanation: _Optional[str] = ..., kv_coding: _Optional[str] = ..., before_face_s: _Optional[float] = ..., kv_passed_over: _Optional[str] = ...) -> None: ...
