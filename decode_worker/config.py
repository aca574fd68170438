"""Options of a decode worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from pdserve.config import Option
from pdserve.shared_options import DEFAULT_ROUTERS, Routers, WorkerName
from pdserve.tracing import TracingConfig


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    engine: EngineConfig = field(default_factory=EngineConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    worker_id: WorkerName = ""
    routers: Routers = DEFAULT_ROUTERS
    max_running: Annotated[
        int, Option("sequences this worker holds at once", unit="sequences", low=1, high=4096)
    ] = 64
    step_tokens: Annotated[
        int,
        Option(
            "colocated mode: tokens of one step, decode rows and prompt chunks together; "
            "0: one chunk and the decode rows",
            unit="tokens",
            low=0,
        ),
    ] = 0
    parking: Annotated[
        str,
        Option(
            "what happens to the KV of a sequence that must make room: copied to host memory, or "
            "dropped and computed again (always so on a GPU)",
            choices=("copy", "recompute"),
        ),
    ] = "copy"
