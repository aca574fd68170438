"""What to do when a command cannot reach the service it asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pdserve.errors import ServiceError


@contextmanager
def reaching(grpc_target: str) -> Iterator[None]:
    """Advice on an address where no service answers; a service's own refusals pass as they are."""
    try:
        yield
    except ServiceError as error:
        if type(error) is ServiceError:  # gRPC's own UNAVAILABLE: nobody of ours was there
            error.advise(
                f"is a service up at {grpc_target}? start one with `pdserve serve`, or give its "
                "address with --grpc-target"
            )
        raise
