"""Options of ``pdserve serve`` that belong to no single role: how many, where, how launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pdserve.config import Option


@dataclass(frozen=True, slots=True)
class ServeConfig:
    prefill_workers: Annotated[
        int, Option("prefill workers; none are started in colocated mode", unit="workers", low=1,
                    high=256)
    ] = 1  # fmt: skip
    decode_workers: Annotated[int, Option("decode workers", unit="workers", low=1, high=256)] = 1
    launcher: Annotated[
        str,
        Option(
            "local: every role is a process of its own; inproc: all in this one, for tests",
            choices=("local", "inproc"),
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
