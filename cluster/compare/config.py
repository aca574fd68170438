"""Options of ``pdserve compare`` beside those of the service it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pdserve.config import Option


@dataclass(frozen=True, slots=True)
class CompareConfig:
    trace: Annotated[
        str,
        Option("file of recorded arrivals and lengths; empty: --isl, --osl, --rate", private=True),
    ] = ""
    trace_format: Annotated[
        str,
        Option("azure: CSV with TIMESTAMP,ContextTokens,GeneratedTokens; mooncake: JSON lines with"
               " timestamp, input_length, output_length, hash_ids; auto: by the first line",
               choices=("auto", "azure", "mooncake"), private=True),
    ] = "auto"  # fmt: skip
    first_request: Annotated[
        int, Option("requests of the trace to pass over", unit="requests", low=0, private=True)
    ] = 0
    num_requests: Annotated[
        int, Option("requests to send in each turn", unit="requests", low=1, private=True)
    ] = 100
    time_scale: Annotated[
        float,
        Option("the trace's gaps between arrivals times this; 2: half as busy", low=0,
               private=True),
    ] = 1.0  # fmt: skip
    length_scale: Annotated[
        float,
        Option("the trace's prompts and answers times this; 0.25: a quarter as long", low=1e-4,
               private=True),
    ] = 1.0  # fmt: skip
    answer_scale: Annotated[
        float,
        Option("the trace's answers times this instead; 0: as --length-scale", low=0, private=True),
    ] = 0.0  # fmt: skip
    spread_s: Annotated[
        float,
        Option("requests recorded at one time are spread evenly over this much recorded time",
               unit="s", low=0, private=True),
    ] = 0.0  # fmt: skip
    isl: Annotated[
        int, Option("prompt of each request without a trace", unit="tokens", low=1, private=True)
    ] = 512  # fmt: skip
    osl: Annotated[
        int, Option("answer to each request without a trace", unit="tokens", low=1, private=True)
    ] = 64  # fmt: skip
    rate: Annotated[
        float,
        Option("arrivals without a trace, a Poisson process", unit="requests/s", low=1e-3,
               private=True),
    ] = 1.0  # fmt: skip
    max_isl: Annotated[
        int,
        Option("longer prompts are cut to this; 0: to what the model's context leaves",
               unit="tokens", low=0, private=True),
    ] = 0  # fmt: skip
    max_osl: Annotated[
        int,
        Option("longer answers are cut to this; 0: as recorded", unit="tokens", low=0,
               private=True),
    ] = 0  # fmt: skip
    against: Annotated[
        str,
        Option("which colocated service: as many workers, one with all their threads, or both",
               choices=("both", "many", "one"), private=True),
    ] = "both"  # fmt: skip
    rounds: Annotated[
        int, Option("turns of each setup, interleaved", unit="turns", low=1, private=True)
    ] = 1
    warmup_requests: Annotated[
        int,
        Option("requests at the start of each turn that do not count", unit="requests", low=0,
               private=True),
    ] = 4  # fmt: skip
    slo_ttft_ms: Annotated[
        float, Option("goodput: the first token within this", unit="ms", low=0, private=True)
    ] = 2000.0
    slo_itl_ms: Annotated[
        float,
        Option("goodput: the mean gap between an answer's tokens within this", unit="ms", low=0,
               private=True),
    ] = 100.0  # fmt: skip
    load_seed: Annotated[
        str, Option("seed of prompts and arrivals; the same load for all setups", private=True)
    ] = "0"
    answer_timeout_s: Annotated[float, Option("longest wait for one answer", unit="s", low=0.1)] = (
        3600.0
    )
    results: Annotated[
        Path, Option("folder for the plot and the raw JSON", private=True)
    ] = Path("build/compare")  # fmt: skip
    plot: Annotated[
        str,
        Option("the plot: gaps between tokens over time, arrivals marked",
               choices=("png", "svg", "none"), private=True),
    ] = "png"  # fmt: skip
