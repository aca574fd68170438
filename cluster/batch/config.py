"""Options of ``pdserve batch`` beside those of the service it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pdserve.config import Option
from pdserve.shared_options import Json


@dataclass(frozen=True, slots=True)
class BatchConfig:
    input: Annotated[
        str,
        Option("file of requests, one JSON object a line (OpenAI's batch format); must be given",
               private=True),
    ] = ""  # fmt: skip
    output: Annotated[
        str,
        Option("file of results, one JSON object a line; what is there already is not done again; "
               "must be given", private=True),
    ] = ""  # fmt: skip
    concurrency: Annotated[
        int, Option("requests under way at once", unit="requests", low=1, high=65_536)
    ] = 64
    service_url: Annotated[
        str, Option("send to the service at this address; empty: start one for the batch")
    ] = ""
    max_tries: Annotated[
        int,
        Option("times a line is sent before a failure of the service is its result", unit="times",
               low=1, high=1000),
    ] = 6  # fmt: skip
    request_timeout_s: Annotated[
        float, Option("longest wait for the answer to one line", unit="s", low=0.1)
    ] = 3600.0
    progress_s: Annotated[
        float,
        Option("pause between two lines of progress where there is no terminal to draw a bar on",
               unit="s", low=0.1),
    ] = 10.0  # fmt: skip
    json: Json = False
