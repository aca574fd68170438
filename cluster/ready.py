"""What a role process tells its launcher on ``--ready-fd``: one line of JSON, once."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from pdserve.errors import ProtocolError
from pdserve.messages import Hello


@dataclass(frozen=True, slots=True)
class RouterReady:
    """Where the router listens. Ports are the real ones, also where 0 was asked for."""

    pid: int
    host: str
    http_port: int
    grpc_port: int
    worker_port: int
    model_name: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker that can be dialled and has dialled."""

    pid: int
    worker_id: str
    role: str
    incarnation: str
    device: str
    num_blocks: int
    block_size: int  # tokens
    transports: tuple[str, ...]

    @classmethod
    def of(cls, hello: Hello, pid: int) -> WorkerReady:
        return cls(
            pid=pid,
            worker_id=hello.worker_id,
            role=hello.role.value,
            incarnation=hello.incarnation,
            device=hello.device,
            num_blocks=hello.limits.total_blocks,
            block_size=hello.layout.block_size,
            transports=tuple(endpoint.transport for endpoint in hello.endpoints),
        )

    def describe(self) -> str:
        """One line for people."""
        road = f", KV by {'/'.join(self.transports)}" if self.transports else ""
        return (
            f"{self.worker_id} ready: {self.device}, {self.num_blocks:,} KV blocks of "
            f"{self.block_size} tokens{road}, pid {self.pid}"
        )


ReadyReport = RouterReady | WorkerReady


def encode_ready(report: ReadyReport) -> dict[str, object]:
    return dataclasses.asdict(report)


def decode_ready(line: bytes) -> ReadyReport:
    """Raises ProtocolError if the line is not one of ours."""
    try:
        facts = json.loads(line)
        if "http_port" in facts:
            return RouterReady(**facts)
        return WorkerReady(**{**facts, "transports": tuple(facts["transports"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ProtocolError(f"not a ready line: {line[:200]!r}") from error
