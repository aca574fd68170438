from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_PREFILL: _ClassVar[Role]
    ROLE_DECODE: _ClassVar[Role]

class Leg(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEG_UNSPECIFIED: _ClassVar[Leg]
    LEG_PREFILL: _ClassVar[Leg]
    LEG_DECODE: _ClassVar[Leg]
    LEG_COLOCATED: _ClassVar[Leg]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
ROLE_UNSPECIFIED: Role
ROLE_PREFILL: Role
ROLE_DECODE: Role
LEG_UNSPECIFIED: Leg
LEG_PREFILL: Leg
LEG_DECODE: Leg
LEG_COLOCATED: Leg
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class LogitBias(_message.Message):
    __slots__ = ("token_id", "bias")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    bias: float
    def __init__(self, token_id: _Optional[int] = ..., bias: _Optional[float] = ...) -> None: ...

class SamplingParams(_message.Message):
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
    logit_bias: _containers.RepeatedCompositeFieldContainer[LogitBias]
    seed: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    num_logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Iterable[_Union[LogitBias, _Mapping]]] = ..., seed: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., num_logprobs: _Optional[int] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("request_id", "prompt_ids", "sampling", "priority", "time_left_s", "cache_salt", "traceparent")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: SamplingParams
    priority: int
    time_left_s: float
    cache_salt: str
    traceparent: str
    def __init__(self, request_id: _Optional[str] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., time_left_s: _Optional[float] = ..., cache_salt: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("request", "epoch", "forced_ids")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FORCED_IDS_FIELD_NUMBER: _ClassVar[int]
    request: Request
    epoch: int
    forced_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., epoch: _Optional[int] = ..., forced_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class KvLayout(_message.Message):
    __slots__ = ("num_layers", "num_kv_heads", "head_dim", "block_size", "dtype", "first_kv_head", "order")
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FIRST_KV_HEAD_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    first_kv_head: int
    order: str
    def __init__(self, num_layers: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., block_size: _Optional[int] = ..., dtype: _Optional[str] = ..., first_kv_head: _Optional[int] = ..., order: _Optional[str] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("transport", "address")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    transport: str
    address: str
    def __init__(self, transport: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class TransferTicket(_message.Message):
    __slots__ = ("ticket_id", "epoch", "worker_id", "incarnation", "endpoints", "layout", "num_tokens", "expires_in_s")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    epoch: int
    worker_id: str
    incarnation: str
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    layout: KvLayout
    num_tokens: int
    expires_in_s: float
    def __init__(self, ticket_id: _Optional[str] = ..., epoch: _Optional[int] = ..., worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., layout: _Optional[_Union[KvLayout, _Mapping]] = ..., num_tokens: _Optional[int] = ..., expires_in_s: _Optional[float] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("chosen", "top")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    chosen: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, chosen: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenEvent(_message.Message):
    __slots__ = ("request_id", "epoch", "index", "token_id", "finish_reason", "logprobs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    index: int
    token_id: int
    finish_reason: FinishReason
    logprobs: TokenLogprobs
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., index: _Optional[int] = ..., token_id: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., logprobs: _Optional[_Union[TokenLogprobs, _Mapping]] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("step", "step_age_s", "total_blocks", "free_blocks", "reserved_blocks", "num_queued", "queued_tokens", "num_running", "running_tokens", "num_parked", "num_exported", "exported_tokens", "draining", "last_submit_seq", "cached_blocks", "cost", "kv_intake_bytes", "kv_intake_waits")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEP_AGE_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARKED_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPORTED_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LAST_SUBMIT_SEQ_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    KV_INTAKE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_INTAKE_WAITS_FIELD_NUMBER: _ClassVar[int]
    step: int
    step_age_s: float
    total_blocks: int
    free_blocks: int
    reserved_blocks: int
    num_queued: int
    queued_tokens: int
    num_running: int
    running_tokens: int
    num_parked: int
    num_exported: int
    exported_tokens: int
    draining: bool
    last_submit_seq: int
    cached_blocks: int
    cost: StepCost
    kv_intake_bytes: int
    kv_intake_waits: int
    def __init__(self, step: _Optional[int] = ..., step_age_s: _Optional[float] = ..., total_blocks: _Optional[int] = ..., free_blocks: _Optional[int] = ..., reserved_blocks: _Optional[int] = ..., num_queued: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., num_running: _Optional[int] = ..., running_tokens: _Optional[int] = ..., num_parked: _Optional[int] = ..., num_exported: _Optional[int] = ..., exported_tokens: _Optional[int] = ..., draining: _Optional[bool] = ..., last_submit_seq: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., cost: _Optional[_Union[StepCost, _Mapping]] = ..., kv_intake_bytes: _Optional[int] = ..., kv_intake_waits: _Optional[int] = ...) -> None: ...

class StepCost(_message.Message):
    __slots__ = ("prefill_fixed_s", "prefill_per_token_s", "prefill_per_squared_token_s", "decode_fixed_s", "decode_per_sequence_s", "decode_per_kv_token_s")
    PREFILL_FIXED_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PER_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PER_SQUARED_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIXED_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_PER_SEQUENCE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_PER_KV_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    prefill_fixed_s: float
    prefill_per_token_s: float
    prefill_per_squared_token_s: float
    decode_fixed_s: float
    decode_per_sequence_s: float
    decode_per_kv_token_s: float
    def __init__(self, prefill_fixed_s: _Optional[float] = ..., prefill_per_token_s: _Optional[float] = ..., prefill_per_squared_token_s: _Optional[float] = ..., decode_fixed_s: _Optional[float] = ..., decode_per_sequence_s: _Optional[float] = ..., decode_per_kv_token_s: _Optional[float] = ...) -> None: ...

class WorkerLimits(_message.Message):
    __slots__ = ("max_model_len", "total_blocks", "chunk_tokens", "max_running", "vocab_size")
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    max_model_len: int
    total_blocks: int
    chunk_tokens: int
    max_running: int
    vocab_size: int
    def __init__(self, max_model_len: _Optional[int] = ..., total_blocks: _Optional[int] = ..., chunk_tokens: _Optional[int] = ..., max_running: _Optional[int] = ..., vocab_size: _Optional[int] = ...) -> None: ...

class PrefillTiming(_message.Message):
    __slots__ = ("queue_s", "compute_s", "num_cached_tokens")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    compute_s: float
    num_cached_tokens: int
    def __init__(self, queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...

class KvTiming(_message.Message):
    __slots__ = ("transport", "num_tokens", "num_bytes", "transfer_s", "num_cached_tokens", "coding", "passed_over")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODING_FIELD_NUMBER: _ClassVar[int]
    PASSED_OVER_FIELD_NUMBER: _ClassVar[int]
    transport: str
    num_tokens: int
    num_bytes: int
    transfer_s: float
    num_cached_tokens: int
    coding: str
    passed_over: str
    def __init__(self, transport: _Optional[str] = ..., num_tokens: _Optional[int] = ..., num_bytes: _Optional[int] = ..., transfer_s: _Optional[float] = ..., num_cached_tokens: _Optional[int] = ..., coding: _Optional[str] = ..., passed_over: _Optional[str] = ...) -> None: ...

class DecodeTiming(_message.Message):
    __slots__ = ("queue_s", "first_step_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    first_step_s: float
    def __init__(self, queue_s: _Optional[float] = ..., first_step_s: _Optional[float] = ...) -> None: ...
