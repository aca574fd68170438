"""``pdserve explain ID``: why one of the latest requests went to the workers it went to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from cluster.commands.reaching import reaching
from cluster.config import ExplainConfig
from cluster.decision_table import decision_lines
from pdserve.config import build_config
from pdserve.flags import FlagParser
from router.client import Client


def run_explain(argv: Sequence[str]) -> int:
    parser = FlagParser("pdserve explain", "Why one of the latest requests went where it went.")
    parser.add_positional(
        "request", "id of the request as logs, answers or X-Request-ID have it; 'last': the newest"
    )
    parser.add_options("options", ExplainConfig)
    sources = parser.parse(argv)
    config = build_config(ExplainConfig, "explain", sources)
    with reaching(config.grpc_target), Client(config.grpc_target) as client:
        found = client.explain(str(sources.flags["request"]))
    if config.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        print("\n".join(decision_lines(found, config.candidates)))
    return 0
