"""Options of one engine: which model, on which device, with how much KV memory.

What was asked is here and frozen; what is found at start (blocks that fit, device name) is on the
runner. Used by both worker rooms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pdserve.config import Option
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


@dataclass(frozen=True, slots=True)
class EngineConfig:
    model: Model = DEFAULT_MODEL
    served_model_name: ServedModelName = ""
    engine: Engine = "model"
    dtype: Dtype = DEFAULT_DTYPE
    weights: Weights = DEFAULT_WEIGHTS
    device: Annotated[str, Option("'cpu', 'cuda' or 'cuda:N'")] = "cpu"
    threads: Annotated[
        int, Option("compute threads; 0: this worker's share of the host's cores", low=0, high=1024)
    ] = 0
    cpus: Annotated[str, Option("cores to run on, as '0,2-3'; empty: any")] = ""
    block_size: Annotated[int, Option("KV block", unit="tokens", low=1, high=1024)] = 16
    kv_memory_mib: Annotated[
        float, Option("memory for KV blocks; 0: 1024 on a CPU, 80 % of what is free on a GPU",
                      unit="MiB", low=0)
    ] = 0.0  # fmt: skip
    max_model_len: Annotated[
        int, Option("longest context; 0: the model's own", unit="tokens", low=0)
    ] = 0
    chunk_tokens: Annotated[
        int, Option("prefill chunk, a multiple of the block size", unit="tokens", low=1)
    ] = 256
    prefix_cache: Annotated[
        str,
        Option("keep the KV of sequences that ended for later ones that begin the same",
               choices=("on", "off")),
    ] = "on"  # fmt: skip
    native: Annotated[
        str, Option("C kernels on a CPU: 'auto' falls back to torch, 'on' refuses to",
                    choices=("auto", "on", "off"))
    ] = "auto"  # fmt: skip
    fake_prefill_us: Annotated[
        float, Option("fake engine: time for each prompt token", unit="µs", low=0)
    ] = 20.0
    fake_decode_ms: Annotated[
        float, Option("fake engine: time for each step that decodes", unit="ms", low=0)
    ] = 2.0
