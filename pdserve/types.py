"""The values that flow between rooms and processes.

Everything here is frozen: whoever receives a value may keep it, nobody may add to it in flight.
Times that cross a process are durations ("time left", "seconds spent"), never clock readings.

This module does not know how values are encoded (pdserve/rpc/codec.py) nor who sends them
(pdserve/messages.py). Not covered: images, audio, adapters, beam search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, NewType

from pdserve.errors import InvalidRequest
from pdserve.step_cost import StepCost

RequestId = NewType("RequestId", str)
TicketId = NewType("TicketId", str)
WorkerId = NewType("WorkerId", str)

MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_CACHE_SALT_CHARS = 256


class Role(StrEnum):
    """What a worker process does (not what it is: the engine is the same)."""

    PREFILL = "prefill"
    DECODE = "decode"


class Leg(StrEnum):
    """Which part of an attempt a worker is asked to do."""

    PREFILL = "prefill"  # compute the prompt, sample the first token, hold the KV for the ticket
    DECODE = "decode"  # redeem the ticket, generate the rest
    COLOCATED = "colocated"  # both, in one worker: the baseline


class FinishReason(StrEnum):
    STOP = "stop"  # end-of-sequence token, stop token id or (router only) stop string
    LENGTH = "length"  # max_tokens or the context is reached


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. The defaults are greedy.

    Penalties count every generated token, forced ones included; ``repetition_penalty`` counts the
    prompt too (as Hugging Face and vLLM do). Order of application: repetition, presence/frequency,
    logit bias, min_tokens mask, temperature, top-k, top-p, min-p.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0  # the router fills one in when the client gave none
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # None: off; 0: of the chosen token; n: and of the n best

    def __post_init__(self) -> None:
        _require_int("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _require_int("min_tokens", self.min_tokens, 0, self.max_tokens)
        _require("temperature", self.temperature, 0.0, 100.0)
        _require_int("top_k", self.top_k, 0, 2**31 - 1)
        _require("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _require("min_p", self.min_p, 0.0, 1.0)
        _require("repetition_penalty", self.repetition_penalty, 0.0, 10.0, low_open=True)
        _require("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _require("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _require_int("seed", self.seed, 0, 2**63 - 1)
        if self.num_logprobs is not None:
            _require_int("num_logprobs", self.num_logprobs, 0, MAX_LOGPROBS)
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequest("stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} ids")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest("logit_bias", f"at most {MAX_LOGIT_BIAS} entries")
        for token_id, bias in self.logit_bias:
            _require("logit_bias", bias, -100.0, 100.0)
            if token_id < 0:
                raise InvalidRequest("logit_bias", f"token id {token_id} is negative")


@dataclass(frozen=True, slots=True)
class Request:
    """One generation, as every worker sees it: token ids, never text.

    ``deadline_s`` is on the clock of the process that holds the value (``Clock.now``); the codec
    turns it into time left and back. ``None`` means no deadline. Lower ``priority`` goes first.
    KV is shared between requests of one ``cache_salt`` only.
    """

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    deadline_s: float | None = None
    cache_salt: str = ""
    traceparent: str = ""  # W3C context of the request's span; "": not traced

    def __post_init__(self) -> None:
        if not self.request_id or len(self.request_id) > 128:
            raise InvalidRequest("request_id", "1 to 128 characters")
        if len(self.cache_salt) > MAX_CACHE_SALT_CHARS:
            raise InvalidRequest("cache_salt", f"at most {MAX_CACHE_SALT_CHARS} characters")
        if not self.prompt_ids:
            raise InvalidRequest("prompt", "must hold at least one token")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One dispatch of a request. A later epoch replaces an earlier one everywhere.

    ``forced_ids`` are tokens the client already has: they extend the prompt for computation, count
    as generated for limits and penalties, and are never sampled again. The next token sampled has
    index ``first_index == len(forced_ids)``.
    """

    request: Request
    epoch: int
    forced_ids: tuple[int, ...] = ()

    @property
    def first_index(self) -> int:
        return len(self.forced_ids)

    @property
    def context_ids(self) -> tuple[int, ...]:
        """Token ids whose KV prefill computes: prompt, then forced."""
        return self.request.prompt_ids + self.forced_ids

    @property
    def num_context_tokens(self) -> int:
        return len(self.request.prompt_ids) + len(self.forced_ids)

    @property
    def max_total_tokens(self) -> int:
        """Tokens of context at the very end: prompt plus everything that may be generated."""
        return len(self.request.prompt_ids) + self.request.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of the KV of one worker. Two have the same blocks if ``first_difference`` is None.

    One block is contiguous, in the order ``[layer][k, v][kv_head][token][head_dim]``: the order
    string is part of the layout so that another order is refused by name and not misread.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int  # tokens a block
    dtype: str  # "float32" | "bfloat16" | "float16"
    first_kv_head: int = 0  # which slice of the heads (tensor parallelism); 0 and all of them today
    order: str = "layer,kv,head,token,dim"

    @property
    def dtype_bytes(self) -> int:
        return {"float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_size

    @property
    def token_bytes(self) -> int:
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype_bytes

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens (the last one may be partly filled)."""
        return -(-num_tokens // self.block_size)

    def first_difference(self, other: KVLayout) -> str | None:
        """Name of the first field in which the two differ, or None."""
        for name in (
            "order", "dtype", "num_layers", "num_kv_heads", "first_kv_head", "head_dim",
            "block_size",
        ):  # fmt: skip
            if getattr(self, name) != getattr(other, name):
                return name
        return None

    def first_obstacle(self, other: KVLayout) -> str | None:
        """Name of the first field by which blocks of this layout cannot become blocks of ``other``.

        Block size and dtype can be converted; of the heads ``other`` may have a part.
        """
        for name in ("order", "num_layers", "head_dim"):
            if getattr(self, name) != getattr(other, name):
                return name
        if other.num_kv_heads > self.num_kv_heads:
            return "num_kv_heads"
        last_start = self.first_kv_head + self.num_kv_heads - other.num_kv_heads
        if not self.first_kv_head <= other.first_kv_head <= last_start:
            return "first_kv_head"
        return None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a worker's KV can be read: transport name ("grpc", "inproc") and its address."""

    transport: str
    address: str


@dataclass(frozen=True, slots=True)
class TransferTicket:
    """Claim check for the KV of one attempt, held by exactly one incarnation of one prefill worker.

    ``ticket_id`` is stable over redemptions; ``epoch`` says which attempt may redeem it.
    ``expires_in_s`` is for the holder: how long it keeps the KV while nobody reads it, or once it
    is computed while no reader gets on.
    """

    ticket_id: TicketId
    epoch: int
    worker_id: WorkerId
    incarnation: str
    endpoints: tuple[Endpoint, ...]
    layout: KVLayout
    num_tokens: int
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities of the model (before temperature and truncation)."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


class TokenEvent(NamedTuple):
    """One generated token. Indices count from 0 without gap or repeat; one event is terminal.

    A tuple, since making one is most of what a token costs between processes.
    """

    request_id: RequestId
    epoch: int
    index: int  # type: ignore[assignment]  # takes the place of tuple's method, which nobody asks
    token_id: int
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker says of itself with every step, on change, and at least once a second."""

    step: int = 0  # engine steps finished so far
    step_age_s: float = 0.0  # since the last step ended if there is work, else 0: grows when hung
    total_blocks: int = 0
    free_blocks: int = 0
    reserved_blocks: int = 0  # promised to admitted attempts; the authority on admission
    num_queued: int = 0  # admitted, not computing: waiting for a reader (P) or for KV (D)
    queued_tokens: int = 0  # prompt tokens admitted and not yet computed
    num_running: int = 0
    running_tokens: int = 0  # context tokens of the running sequences
    num_parked: int = 0
    num_exported: int = 0  # tickets whose blocks are pinned for a reader
    exported_tokens: int = 0
    draining: bool = False
    last_submit_seq: int = 0  # highest Submit number seen in this session
    cached_blocks: int = 0  # whose content a later prompt may start from; held or free
    kv_intake_bytes: int = 0  # KV taken in from other workers, since the start
    kv_intake_waits: int = 0  # frames that had to wait for a step to end, since the start
    cost: StepCost = StepCost()  # of its steps, as it measures them; zeros: nothing known yet


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker can take at all; larger requests are refused at the router, by name."""

    max_model_len: int  # tokens of context, prompt and generated together
    total_blocks: int
    chunk_tokens: int  # prefill chunk, tokens
    max_running: int  # sequences in one decode batch
    vocab_size: int


@dataclass(frozen=True, slots=True)
class PrefillTiming:
    queue_s: float = 0.0  # submit received -> first chunk starts
    compute_s: float = 0.0  # first chunk starts -> first token sampled
    num_cached_tokens: int = 0  # of the context, that the prefix cache had


@dataclass(frozen=True, slots=True)
class KvTiming:
    """Measured by the decode worker, on its clock."""

    transport: str = ""
    num_tokens: int = 0  # that came over
    num_bytes: int = 0
    transfer_s: float = 0.0  # first frame received -> commit verified
    num_cached_tokens: int = 0  # of the context, that the decode worker had already
    coding: str = ""  # "int8" or "fp8" if it came in 8 bits a value; empty: as it was
    passed_over: str = ""  # transports of both that come first but could not be reached, by commas


@dataclass(frozen=True, slots=True)
class DecodeTiming:
    queue_s: float = 0.0  # commit verified -> first step that holds the sequence starts
    first_step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the router must know of the model it fronts; workers announce the same fingerprint."""

    name: str
    fingerprint: str  # prepared weights + tokenizer + dtype; workers of another one are refused
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = field(default=())


def _require(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InvalidRequest(name, f"must be a number, not {value!r}")
    inside = (low < value if low_open else low <= value) and value <= high
    if not math.isfinite(value) or not inside:
        bracket = "(" if low_open else "["
        raise InvalidRequest(name, f"must lie in {bracket}{low:g}, {high:g}], not {value!r}")


def _require_int(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(name, f"must be an integer, not {value!r}")
    if not low <= value <= high:
        raise InvalidRequest(name, f"must lie in [{low}, {high}], not {value!r}")
