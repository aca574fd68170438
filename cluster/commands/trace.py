"""``pdserve trace ID``: where the time of one of the latest requests went, drawn as a waterfall."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from cluster.commands.reaching import reaching
from cluster.config import TraceCommandConfig
from cluster.waterfall import waterfall_lines
from pdserve.config import build_config
from pdserve.flags import FlagParser
from pdserve.public import RequestRecord
from router.client import Client


def run_trace(argv: Sequence[str]) -> int:
    parser = FlagParser("pdserve trace", "Where the time of one of the latest requests went.")
    parser.add_positional(
        "request", "id of the request as logs, answers or X-Request-ID have it; 'last': the newest"
    )
    parser.add_options("options", TraceCommandConfig)
    sources = parser.parse(argv)
    config = build_config(TraceCommandConfig, "trace", sources)
    with reaching(config.grpc_target), Client(config.grpc_target) as client:
        record = client.request_record(str(sources.flags["request"]))
    print(_as_json(record) if config.json else "\n".join(waterfall_lines(record, config.width)))
    return 0


def _as_json(record: RequestRecord) -> str:
    sums = {"ttft_s": record.timing.ttft_s, "first_gap_s": record.timing.first_gap_s}
    return json.dumps({**dataclasses.asdict(record), **sums}, indent=1)
