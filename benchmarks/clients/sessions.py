"""Clients that are no load tools: a session of calls, each of which works or does not.

    openai     benchmarks/clients/openai_session.py, in this environment
    grpcurl    benchmarks/clients/grpcurl_session.py, which runs the program

Each writes how many of its calls did what they should.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.clients.tool import Load, Outcome, Target

_RESULT = "result.json"


class OpenaiClient:
    name = "openai"
    program = ""
    environment: Mapping[str, str] = {}

    def command(self, program: str, target: Target, load: Load, out: Path) -> list[str]:
        module = "benchmarks.clients.openai_session"
        return [sys.executable, "-m", module, target.url, target.model, str(out / _RESULT)]

    def outcome(self, out: Path) -> Outcome:
        return read_outcome(out / _RESULT)


class Grpcurl:
    name = "grpcurl"
    program = "grpcurl"
    environment: Mapping[str, str] = {}

    def command(self, program: str, target: Target, load: Load, out: Path) -> list[str]:
        module = "benchmarks.clients.grpcurl_session"
        return [sys.executable, "-m", module, program, target.grpc_target, str(out / _RESULT)]

    def outcome(self, out: Path) -> Outcome:
        return read_outcome(out / _RESULT)


def write_outcome(file: Path, failures: Sequence[str], num_calls: int) -> None:
    """``failures``: what was wrong, one for each call that did not do what it should."""
    file.write_text(json.dumps({"num_calls": num_calls, "failures": failures}), encoding="utf-8")


def read_outcome(file: Path) -> Outcome:
    document = json.loads(file.read_text(encoding="utf-8"))
    num_failed = len(document["failures"])
    return Outcome(document["num_calls"] - num_failed, num_failed)
