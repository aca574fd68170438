"""Options of a prefill worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from pdserve.config import Option
from pdserve.shared_options import DEFAULT_ROUTERS, Routers, WorkerName
from pdserve.tracing import TracingConfig


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    engine: EngineConfig = field(default_factory=EngineConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    worker_id: WorkerName = ""
    routers: Routers = DEFAULT_ROUTERS
    listen: Annotated[
        str, Option("where decode workers read KV, host:port; port 0: any free one")
    ] = "127.0.0.1:0"
    advertise: Annotated[
        str,
        Option("address decode workers are told, host or host:port; empty: the one listened on"),
    ] = ""
    stream_listen: Annotated[
        str,
        Option(
            "where decode workers read KV over plain TCP (transport tcp), host:port; empty: any "
            "free port beside --listen, unless --advertise names a forwarded port"
        ),
    ] = ""
    step_tokens: Annotated[
        int,
        Option("prompt tokens of one step, chunks of several prompts together; 0: one chunk",
               unit="tokens", low=0),
    ] = 0  # fmt: skip
    nice: Annotated[
        int,
        Option("how far the compute threads stand back from everything else on their cores, which "
               "a prompt hardly feels and a token on its way does", unit="nice", low=0, high=19),
    ] = 10  # fmt: skip
