"""``pdserve``: one console script, one file a command (cluster/commands). Loads nothing heavy.

Exit status: 0 done, 1 it failed, 2 the options or the configuration are wrong, 130 interrupted, 141
nobody reads what it prints any more.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pdserve.config import keep_grpc_quiet
from pdserve.errors import ConfigError, PdserveError
from pdserve.option_values import nearest


class Command(NamedTuple):
    module: str
    function: str
    summary: str

    def load(self) -> Callable[[Sequence[str]], int]:
        function: Callable[[Sequence[str]], int] = getattr(
            importlib.import_module(self.module), self.function
        )
        return function


COMMANDS = {
    "serve": Command("cluster.commands.serve", "run_serve", "start a whole service on this host"),
    "batch": Command("cluster.commands.batch", "run_batch", "answer a file of requests, then end"),
    "compare": Command(
        "cluster.commands.compare", "run_compare", "disaggregated against colocated, measured"
    ),
    "cluster": Command("cluster.commands.cluster", "run_cluster", "a running service on Ray"),
    "router": Command("cluster.commands.roles", "run_router", "one router"),
    "prefill": Command("cluster.commands.roles", "run_prefill", "one prefill worker"),
    "decode": Command("cluster.commands.roles", "run_decode", "one decode worker"),
    "generate": Command("cluster.commands.generate", "run_generate", "send one prompt"),
    "status": Command("cluster.commands.status", "run_status", "workers and load of a service"),
    "trace": Command("cluster.commands.trace", "run_trace", "where the time of a request went"),
    "explain": Command(
        "cluster.commands.explain", "run_explain", "why a request went to its workers"
    ),
    "model": Command("cluster.commands.model", "run_model", "prepare or describe a model"),
    "doctor": Command("cluster.commands.doctor", "run_doctor", "check this host for a service"),
    "config": Command("cluster.commands.config", "run_config", "options: values and origins"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(_version())
        return 0
    keep_grpc_quiet()
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
        status = COMMANDS[name].load()(rest)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        helping = f"pdserve {name} --help" if name in COMMANDS else "pdserve --help"
        print(f"pdserve: {error}\n  next: {error.next_step or helping}", file=sys.stderr)
        return 2
    except PdserveError as error:
        print(f"pdserve {name}: {error}", file=sys.stderr)
        if error.next_step:
            print(f"  next: {error.next_step}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is buffered would be written at the end of the process, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _version() -> str:
    try:
        return importlib.metadata.version("pdserve")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: running from a checkout"


def _usage() -> str:
    rows = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "pdserve: language-model serving with prefill and decode on different workers",
            "",
            "usage: pdserve COMMAND [OPTIONS]",
            "",
            *rows,
            "",
            "pdserve COMMAND --help shows its options, with units and defaults.",
        ]
    )
