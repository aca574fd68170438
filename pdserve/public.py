"""What a client asks of the service and what it gets: the values of the public gRPC face.

    client  --GenerateJob-->  InferenceBackend.generate  --GenerateDelta...-->  client

The face (pdserve/rpc/inference_server.py) knows the service as an ``InferenceBackend``; the router
satisfies it (router/grpc_backend.py), and so can a stand-in of twenty lines. The clients use the
same values. This module does not know bytes, text processing or workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from pdserve.errors import InvalidRequest
from pdserve.explained import RequestDecisions
from pdserve.request_start import AT_ONCE, Arrival
from pdserve.request_timing import RequestTiming
from pdserve.route_hints import RouteHints
from pdserve.types import (
    Endpoint,
    FinishReason,
    ModelInfo,
    Role,
    WorkerId,
    WorkerLimits,
    WorkerStatus,
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function in an assistant's turn. ``arguments_json``: an object, "" for none."""

    call_id: str
    function: str
    arguments_json: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. ``role`` is what the model's chat template knows.

    ``tool_call_id`` says which of an earlier turn's ``tool_calls`` a tool's turn answers.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """As SamplingParams, with None for what the client left to the service.

    Left out, ``max_tokens`` is the rest of the context, ``temperature`` 1, ``seed`` a random one,
    and everything else is off. Ranges are checked by the service, not here.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    num_logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateJob:
    """One generation. Exactly one of ``prompt``, ``prompt_ids`` and ``messages`` is given."""

    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    messages: tuple[ChatMessage, ...] | None = None
    sampling: SamplingOptions = SamplingOptions()
    stop: tuple[str, ...] = ()
    model: str = ""  # "": the one that is served
    request_id: str = ""  # "": the service makes one up
    priority: int = 0
    timeout_s: float | None = None
    cache_salt: str = ""  # prefixes are shared between requests of one salt only
    num_answers: int = 1
    best_of: int | None = None  # answers generated, for the likeliest num_answers to be told
    traceparent: str = ""  # W3C context of the client's span; travels as metadata of that name
    began_unix_s: float | None = None  # travels as x-request-start, for the ledger alone
    hints: RouteHints = RouteHints()  # travels as metadata too

    def __post_init__(self) -> None:
        given = [each is not None for each in (self.prompt, self.prompt_ids, self.messages)]
        if sum(given) != 1:
            raise InvalidRequest(
                "prompt", f"exactly one of text, token ids and messages is needed, not {sum(given)}"
            )


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as people read it. ``text`` has U+FFFD where ``utf8`` is part of a character."""

    token_id: int
    text: str
    utf8: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledToken:
    chosen: TokenText
    top: tuple[TokenText, ...] = ()  # best first


@dataclass(frozen=True, slots=True)
class Usage:
    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0  # of the prompt, not computed again


@dataclass(frozen=True, slots=True)
class GenerateDelta:
    """What came of one answer since its last delta.

    The last of an answer has ``finish_reason``, the last of all ``usage``, for all together.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[SampledToken, ...] = ()  # one for each token if asked for
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    answer_index: int = 0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as the router sees it."""

    worker_id: WorkerId
    incarnation: str
    role: Role
    device: str
    limits: WorkerLimits
    status: WorkerStatus
    endpoints: tuple[Endpoint, ...] = ()
    num_legs: int = 0  # of this router, that still hold something there
    draining: bool = False  # gets no more work
    peer: str = ""  # address its session comes from
    silent: bool = False  # reports no more, not lost yet: gets nothing new until it does


@dataclass(frozen=True, slots=True)
class KvPairView:
    """How KV goes from a prefill worker to a decode worker."""

    prefill_worker: WorkerId
    decode_worker: WorkerId
    transport: str  # the last time
    num_reads: int = 0  # requests whose KV was verified
    num_bytes: int = 0  # that came over for them
    read_bytes_per_s: float = 0.0  # of the latest, the holder's computing in between included
    probe_bytes_per_s: float = 0.0  # as measured when the two met; 0: not measured
    num_fallbacks: int = 0  # of num_reads: something before ``transport``, but shm, not reached
    probe_bytes: int = 0  # what was read to measure probe_bytes_per_s


@dataclass(frozen=True, slots=True)
class RefusedWorkerView:
    """A worker that was refused at joining. ``worker_id``: "" if it did not say who it is."""

    worker_id: WorkerId
    peer: str  # address it came from
    problem: str  # names the field


@dataclass(frozen=True, slots=True)
class ClusterStatusView:
    """A snapshot of the service."""

    can_serve: bool
    mode: str  # "disaggregated" | "colocated"
    model: ModelInfo
    workers: tuple[WorkerView, ...]
    num_queued: int  # requests waiting at the router
    num_in_flight: int  # requests that have not ended, those in the queue included
    num_tickets: int  # handed out, neither redeemed nor gone
    draining: bool = False  # the router takes no more requests
    kv_pairs: tuple[KvPairView, ...] = ()
    problem: str = ""  # why it cannot serve
    refused: tuple[RefusedWorkerView, ...] = ()  # at joining, and not joined since; latest last


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that has ended. ``outcome``: finish reason, "cancelled", or the error's code."""

    request_id: str
    outcome: str
    timing: RequestTiming


class GenerationStream(Protocol):
    """One generation under way; one reader.

    Iterating yields deltas until the last; a failure is raised as one PdserveError.
    """

    @property
    def request_id(self) -> str: ...

    @property
    def timing(self) -> RequestTiming:
        """The ledger so far; complete once the last delta has come."""

    def __aiter__(self) -> AsyncIterator[GenerateDelta]: ...

    def first_piece_sent(self) -> None:
        """The first delta is on the client's connection: the end of its TTFT."""

    def cancel(self, reason: str) -> None:
        """Nobody will read on: stop the work. Does nothing once it has ended."""


class InferenceBackend(Protocol):
    async def generate(self, job: GenerateJob, *, arrival: Arrival = AT_ONCE) -> GenerationStream:
        """Start one. ``arrival``: for its ledger.

        Raises:
            RequestError: the request cannot be taken, and why.
            ShuttingDown: nothing is taken any more.
        """

    def models(self) -> tuple[ModelInfo, ...]: ...

    def cluster_status(self) -> ClusterStatusView: ...

    def request_record(self, request_id: str) -> RequestRecord:
        """What is kept of a request that has ended. Raises UnknownRequest."""

    def explain(self, request_id: str) -> RequestDecisions:
        """Why one of the latest requests went where it went. Raises UnknownDecision."""
