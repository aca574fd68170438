"""What a measurement is taken of: a service that runs, or one that is started for it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from cluster.load.faces import GrpcFace, HttpFace, ServiceFace
from cluster.load.started_service import started_service


@dataclass(frozen=True, slots=True)
class Setup:
    """``url`` or ``grpc`` name a running service; without them one is started with ``flags``."""

    name: str
    flags: tuple[str, ...] = ()
    face: str = "grpc"  # of a service that is started: "grpc" or "http"
    url: str = ""
    grpc: str = ""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[ServiceFace]:
        """Raises ServiceError if a service that is to be started does not come up."""
        async with contextlib.AsyncExitStack() as stack:
            url, grpc = self.url, self.grpc
            if not url and not grpc:
                facts = await stack.enter_async_context(started_service(self.flags))
                url, grpc = (facts.http_url, "") if self.face == "http" else ("", facts.grpc_target)
            face: ServiceFace = HttpFace(url) if url else GrpcFace(grpc)
            stack.push_async_callback(face.close)
            yield face


def running_setups(url: str, grpc: str) -> list[Setup]:
    """One for each address that is given."""
    setups = [Setup("http", url=url)] if url else []
    return setups + ([Setup("grpc", grpc=grpc)] if grpc else [])


def compared_setups(flags: Sequence[str], face: str) -> list[Setup]:
    """The same two cores used three ways; ``flags`` go to all of them."""
    ways = {
        "1 prefill + 1 decode, 1 thread each": ("--threads=1",),
        "colocated, 1 worker x 2 threads": ("--mode=colocated", "--threads=2"),
        "colocated, 2 workers x 1 thread": (
            "--mode=colocated", "--decode-workers=2", "--threads=1",
        ),
    }  # fmt: skip
    return [Setup(name, (*flags, *own), face) for name, own in ways.items()]
