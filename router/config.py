"""Options of the router: where it listens, how long it waits, how often it tries again.

The defaults of the waits are those of docs/protocol.md section 7. Not here: anything about text
or devices; those belong to the model and to the workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pdserve.config import Option
from pdserve.errors import ConfigError
from pdserve.shared_options import (
    DEFAULT_DTYPE,
    DEFAULT_MODEL,
    DEFAULT_WEIGHTS,
    Dtype,
    Engine,
    Model,
    ServedModelName,
    Weights,
)
from pdserve.tracing import TracingConfig
from pdserve.types import Role
from router.local_prefill import PrefillPlace
from router.route_policy import RoutePolicy


@dataclass(frozen=True, slots=True)
class RouterConfig:
    tracing: TracingConfig = field(default_factory=TracingConfig)
    model: Model = DEFAULT_MODEL
    served_model_name: ServedModelName = ""
    engine: Engine = "model"
    dtype: Dtype = DEFAULT_DTYPE
    weights: Weights = DEFAULT_WEIGHTS
    mixed_weights: Annotated[
        str,
        Option(
            "workers whose weights differ from the router's in precision, with the same tokenizer,"
            " shape and dtype: their KV fits, their tokens differ",
            choices=("refuse", "allow"),
        ),
    ] = "refuse"
    mode: Annotated[
        str,
        Option(
            "prefill and decode on different workers, or both on each decode worker",
            choices=("disaggregated", "colocated"),
        ),
    ] = "disaggregated"
    listen: Annotated[str, Option("address the ports are bound to")] = "127.0.0.1"
    http_port: Annotated[
        int, Option("port of the OpenAI HTTP interface; 0: any free one", low=0, high=65535)
    ] = 8000
    grpc_port: Annotated[
        int, Option("port of the public gRPC service; 0: any free one", low=0, high=65535)
    ] = 9000
    worker_port: Annotated[int, Option("port workers dial; 0: any free one", low=0, high=65535)] = (
        9100
    )
    worker_sessions: Annotated[
        str,
        Option(
            "what carries the sessions with workers: a socket with those of the router's host and"
            " gRPC with others, or gRPC with all",
            choices=("auto", "grpc"),
        ),
    ] = "auto"
    max_queue: Annotated[
        int, Option("most requests waiting for a worker", unit="requests", low=1, high=1_000_000)
    ] = 1024
    dispatch_window_chunks: Annotated[
        float,
        Option(
            "a prefill worker gets another prompt while fewer than this many chunks are left to"
            " compute on it",
            unit="chunks",
            low=0.1,
            high=1000,
        ),
    ] = 2.0
    dispatch_window_ms: Annotated[
        float,
        Option(
            "and while what is left takes it less than this, as far as can be told: covers the way"
            " of its reports to the router",
            unit="ms",
            low=0,
            high=10_000,
        ),
    ] = 10.0
    route_policy: Annotated[
        str,
        Option(
            "what a worker is chosen by: predicted cost (queue, uncached prompt, steps, KV), or, to"
            " compare with, load alone, turns, or the better of two drawn",
            choices=tuple(RoutePolicy),
        ),
    ] = "cost"
    prefill_place: Annotated[
        str,
        Option(
            "where prompts are computed: by prefill workers, by the decode worker that answers, or"
            " there where it is predicted to cost less (needs route_policy cost to know caches)",
            choices=tuple(PrefillPlace),
        ),
    ] = "always-remote"
    local_prefill_tokens: Annotated[
        int,
        Option(
            "prefill_place adaptive: most uncached tokens of a prompt computed by a decode worker",
            unit="tokens",
            low=1,
        ),
    ] = 256
    without_prefill_worker: Annotated[
        str,
        Option(
            "a prompt that is for prefill workers while there is none: it waits, and is refused in"
            " the end, or the decode worker computes it",
            choices=("refuse", "local"),
        ),
    ] = "refuse"
    prefix_index_blocks: Annotated[
        int,
        Option(
            "different KV blocks of the workers' prefix caches that the router keeps track of; 20"
            " bytes each, more or less",
            unit="blocks",
            low=1024,
            high=100_000_000,
        ),
    ] = 1_000_000
    max_redispatches: Annotated[
        int, Option("times a request is tried again after a failure", low=0, high=100)
    ] = 2
    worker_patience_s: Annotated[
        float, Option("how long a request waits for a pool without workers", unit="s", low=0)
    ] = 60.0
    worker_loss_s: Annotated[
        float,
        Option("silence, or age of a step, after which a worker counts as lost", unit="s", low=0.1),
    ] = 10.0
    hello_timeout_s: Annotated[
        float, Option("how long a new session may stay without Hello", unit="s", low=0.01)
    ] = 5.0
    heartbeat_s: Annotated[
        float, Option("longest pause between two reports of a worker", unit="s", low=0.01)
    ] = 1.0
    ticket_ttl_s: Annotated[
        float,
        Option("how long a prefill worker keeps KV that nobody reads, or that is computed and "
               "whose reader does not get on; a prompt may wait and compute for longer",
               unit="s", low=1),
    ] = 120.0  # fmt: skip
    stalled_write_s: Annotated[
        float, Option("a client that takes nothing for so long is cut off", unit="s", low=0.1)
    ] = 30.0
    cors_origins: Annotated[
        tuple[str, ...],
        Option("origin whose web pages may use the HTTP interface from a browser; '*': any"),
    ] = ()
    max_body_bytes: Annotated[
        int, Option("longest request body or message of a client", unit="bytes", low=1024)
    ] = 8 * 1024 * 1024
    trace_requests: Annotated[
        int,
        Option(
            "latest requests whose ledgers are kept for `pdserve trace`", unit="requests", low=0,
            high=1_000_000,
        ),
    ] = 1000  # fmt: skip
    explain_decisions: Annotated[
        int,
        Option(
            "latest routing decisions kept for `pdserve explain`; fewer of them among hundreds of"
            " workers: 65,536 workers looked at are kept in all",
            unit="decisions", low=0, high=1_000_000,
        ),
    ] = 1000  # fmt: skip
    pair_bar_s: Annotated[
        float, Option("first pause of a pair that could not move KV; doubles", unit="s", low=0.01)
    ] = 1.0
    max_pair_bar_s: Annotated[
        float, Option("longest pause of a pair that could not move KV", unit="s", low=0.01)
    ] = 30.0

    def check_ports(self) -> None:
        """Raises ConfigError: two of them are one. Of a port in use the system would say that
        another process has it."""
        taken: dict[int, str] = {}
        for name in ("http_port", "grpc_port", "worker_port"):
            port = getattr(self, name)
            if port and port in taken:
                raise ConfigError(f"{name} and {taken[port]} are both {port}")
            taken[port] = name

    @property
    def allows_mixed_weights(self) -> bool:
        return self.mixed_weights == "allow"

    @property
    def is_colocated(self) -> bool:
        return self.mode == "colocated"

    @property
    def used_roles(self) -> tuple[Role, ...]:
        """Workers that may have a part in a request, those for prompts first."""
        if self.is_colocated or self.prefill_place == PrefillPlace.LOCAL:
            return (Role.DECODE,)
        return (Role.PREFILL, Role.DECODE)

    @property
    def needed_roles(self) -> tuple[Role, ...]:
        """Without a worker of each of them nothing can be served, the prompts' first."""
        if self.without_prefill_worker == "local":
            return (Role.DECODE,)
        return self.used_roles
