"""Options of commands: those of ``pdserve serve`` that belong to no single role, and those of the
commands that look at a service or a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pdserve.config import Option
from pdserve.shared_options import (
    DEFAULT_DTYPE,
    DEFAULT_GRPC_TARGET,
    DEFAULT_WEIGHTS,
    Dtype,
    GrpcTarget,
    Json,
    Weights,
)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    prefill_workers: Annotated[
        int,
        Option(
            "prefill workers; none are started in colocated mode, nor with prefill_place"
            " always-local, which refuses a number",
            unit="workers", low=1, high=256,
        ),
    ] = 1  # fmt: skip
    decode_workers: Annotated[int, Option("decode workers", unit="workers", low=1, high=256)] = 1
    launcher: Annotated[
        str,
        Option(
            "local: every role is a process of its own; ray: every role is an actor on a Ray"
            " cluster; inproc: all in this process, for tests",
            choices=("local", "ray", "inproc"),
        ),
    ] = "local"
    devices: Annotated[
        str, Option("CUDA devices for the workers, as '0,2-3', one each; empty: all there are")
    ] = ""
    prefill_devices: Annotated[
        str, Option("CUDA devices for the prefill workers; empty: from --devices")
    ] = ""
    decode_devices: Annotated[
        str, Option("CUDA devices for the decode workers; empty: from --devices")
    ] = ""
    pin: Annotated[bool, Option("give each worker cores of its own where there are enough")] = True
    start_timeout_s: Annotated[
        float, Option("longest time for a process to become ready", unit="s", low=1)
    ] = 300.0
    ready_file: Annotated[
        str, Option("file that gets ports and workers as JSON once the service is up; empty: none")
    ] = ""


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    http: Annotated[bool, Option("ask by HTTP")] = False
    grpc: Annotated[bool, Option("ask by gRPC, which is the default")] = False
    http_url: Annotated[str, Option("address of the HTTP face")] = "http://127.0.0.1:8000"
    grpc_target: GrpcTarget = DEFAULT_GRPC_TARGET
    timing: Annotated[bool, Option("print the ledger of the request after the answer")] = False
    raw: Annotated[bool, Option("continue the text as it is, without the chat template")] = False
    # Private: PDSERVE_MODEL is a path that the service reads, not a name that clients use.
    model: Annotated[
        str, Option("model to ask; empty: the one that is served", private=True)
    ] = ""  # fmt: skip
    max_tokens: Annotated[
        int, Option("longest answer", unit="tokens", low=1, high=2**31 - 1)
    ] = 128  # fmt: skip
    temperature: Annotated[
        float, Option("randomness; 0: always the likeliest token", low=0, high=100)
    ] = 0.0
    top_p: Annotated[float, Option("share of probability that is kept", low=0, high=1)] = 1.0
    seed: Annotated[int, Option("seed of the randomness; -1: any", low=-1, high=2**63 - 1)] = -1
    stops: Annotated[tuple[str, ...], Option("text that ends the answer")] = ()
    timeout_s: Annotated[float, Option("longest wait for the answer", unit="s", low=0.1)] = 300.0


@dataclass(frozen=True, slots=True)
class StatusConfig:
    grpc_target: GrpcTarget = DEFAULT_GRPC_TARGET
    json: Json = False


@dataclass(frozen=True, slots=True)
class TraceCommandConfig:
    grpc_target: GrpcTarget = DEFAULT_GRPC_TARGET
    json: Json = False
    width: Annotated[
        int, Option("of the drawing, beside its labels", unit="characters", low=10, high=1000)
    ] = 60


@dataclass(frozen=True, slots=True)
class ExplainConfig:
    grpc_target: GrpcTarget = DEFAULT_GRPC_TARGET
    json: Json = False
    candidates: Annotated[
        int, Option("most workers shown for each part of a request", unit="workers", low=1)
    ] = 16  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelConfig:
    dtype: Dtype = DEFAULT_DTYPE
    weights: Weights = DEFAULT_WEIGHTS
    json: Json = False
    context_tokens: Annotated[
        int, Option("info: context of the figures; 0: 2048", unit="tokens", low=0)
    ] = 0
    batch: Annotated[int, Option("info: sequences decoded together", unit="sequences", low=1)] = 1
    efficiency: Annotated[
        float,
        Option("info: share of a card's peak that prefill reaches", unit="share", low=0.01, high=1),
    ] = 0.6


@dataclass(frozen=True, slots=True)
class DoctorConfig:
    json: Json = False


@dataclass(frozen=True, slots=True)
class ShowConfig:
    json: Json = False
    changed: Annotated[
        bool, Option("only what is not at its default", private=True)
    ] = False  # fmt: skip
