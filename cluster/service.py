"""Where a running service is: what ``serve`` prints, and the file scripts read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.ready import RouterReady, WorkerReady
from pdserve.errors import ConfigError

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """``host`` is one that this host can dial."""

    host: str
    http_port: int
    grpc_port: int
    worker_port: int
    model_name: str

    @classmethod
    def of(cls, report: RouterReady) -> ServiceAddress:
        host = _ANY_ADDRESS.get(report.host, report.host)
        return cls(host, report.http_port, report.grpc_port, report.worker_port, report.model_name)

    @property
    def http_url(self) -> str:
        return f"http://{_bracketed(self.host)}:{self.http_port}"

    @property
    def grpc_target(self) -> str:
        return f"{_bracketed(self.host)}:{self.grpc_port}"

    @property
    def worker_target(self) -> str:
        return f"{_bracketed(self.host)}:{self.worker_port}"

    def describe(self) -> str:
        return f"HTTP {self.http_url}/v1, gRPC {self.grpc_target}, workers {self.worker_target}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def check_ready_file(path: Path) -> None:
    """Before a start that may take minutes.

    Raises:
        ConfigError: no file can be written there.
    """
    if path.is_dir():
        problem = "is a folder"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        problem = f"nothing can be written in {path.parent}"
    else:
        return
    raise ConfigError(f"ready_file {path}: {problem}")


def write_ready_file(path: Path, address: ServiceAddress, workers: Sequence[WorkerReady]) -> None:
    """JSON: addresses, model, workers. Appears whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    document = {
        "http_url": address.http_url,
        "grpc_target": address.grpc_target,
        "worker_target": address.worker_target,
        "model": address.model_name,
        "workers": [dataclasses.asdict(worker) for worker in workers],
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"ready_file {path}: {error.strerror}") from error
