"""grpcurl against a running service: ``python -m ... GRPCURL TARGET RESULT``.

It is not given our .proto files: what it knows of the service it asks by reflection.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.clients.sessions import write_outcome

_SERVICE = "pdserve.v1.InferenceService"
_TIMEOUT_S = 60.0
_GENERATE = {"text": "Once upon a time", "sampling": {"max_tokens": 8, "seed": 1}}
_CHAT = {
    "messages": {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    "sampling": {"max_tokens": 16, "temperature": 0},
}

# (options, arguments after the target, what the output must hold)
CALLS: list[tuple[list[str], list[str], str]] = [
    ([], ["list"], _SERVICE),
    ([], ["list", _SERVICE], f"{_SERVICE}.Generate"),
    ([], ["describe", _SERVICE], "rpc Generate"),
    ([], ["describe", "pdserve.v1.GenerateRequest"], "oneof prompt"),
    ([], [f"{_SERVICE}/ListModels"], '"vocab_size"'),
    ([], [f"{_SERVICE}/ClusterStatus"], '"can_serve": true'),
    ([], ["grpc.health.v1.Health/Check"], "SERVING"),
    (["-d", json.dumps(_GENERATE)], [f"{_SERVICE}/Generate"], "FINISH_REASON_LENGTH"),
    (["-d", json.dumps(_CHAT)], [f"{_SERVICE}/Generate"], '"usage"'),
    (["-d", '{"text": "x", "sampling": {"max_tokens": 0}}'], [f"{_SERVICE}/Generate"],
     "InvalidArgument"),
]  # fmt: skip


def main(arguments: list[str]) -> int:
    program, target, result = arguments
    failures = []
    for options, rest, wanted in CALLS:
        done = subprocess.run(
            [program, "-plaintext", *options, target, *rest],
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        told = done.stdout + done.stderr
        if wanted not in told:
            failures.append(f"{' '.join(rest)}: {wanted!r} is not in {told[:300]!r}")
            print(failures[-1])
    write_outcome(Path(result), failures, len(CALLS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
