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
        float, Option("memory for KV blocks; 0: on a CPU half of what is available times the share"
                      " of the cores that compute, on a GPU 80 % of what is free",
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
    attention: Annotated[
        str, Option("kernels on a GPU: 'auto' the first that can be had of flashinfer, triton, "
                    "torch; a CPU has torch's, and its own in C (native)",
                    choices=("auto", "flashinfer", "triton", "torch"))
    ] = "auto"  # fmt: skip
    decode_graphs: Annotated[
        str, Option("record decode steps on a GPU and repeat them; does nothing on a CPU",
                    choices=("on", "off"))
    ] = "on"  # fmt: skip
    sim_shape: Annotated[
        str,
        Option("simulated engine: KV of this model, a shipped shape (`pdserve model info`) or a"
               " folder with a config.json; none: 8 bytes a token"),
    ] = "none"  # fmt: skip
    sim_chunk_ms: Annotated[
        float, Option("simulated engine: time for each prompt chunk", unit="ms", low=0)
    ] = 0.0
    sim_prompt_token_us: Annotated[
        float, Option("simulated engine: time for each prompt token", unit="µs", low=0)
    ] = 0.0
    sim_squared_token_ns: Annotated[
        float,
        Option("simulated engine: time for a prompt of n tokens, times n², besides", unit="ns",
               low=0),
    ] = 0.0  # fmt: skip
    sim_step_ms: Annotated[
        float, Option("simulated engine: time for each decode step", unit="ms", low=0)
    ] = 0.0
    sim_sequence_us: Annotated[
        float, Option("simulated engine: time for each sequence of a decode step", unit="µs", low=0)
    ] = 0.0
    sim_kv_token_ns: Annotated[
        float, Option("simulated engine: time for each KV token a decode step reads", unit="ns",
                      low=0)
    ] = 0.0  # fmt: skip
    fake_prefill_us: Annotated[
        float, Option("fake engine: time for each prompt token", unit="µs", low=0)
    ] = 20.0
    fake_decode_ms: Annotated[
        float, Option("fake engine: time for each step that decodes", unit="ms", low=0)
    ] = 2.0
