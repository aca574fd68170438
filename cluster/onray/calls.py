"""Calls of actors from coroutines, with our own errors instead of Ray's wrappings."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from pdserve.errors import PdserveError


class ActorGone(PdserveError):
    """The actor that was called has died, or cannot be reached."""

    code = "actor_gone"


class ActorRaised(PdserveError):
    """A method of an actor raised an error that is not one of ours."""

    code = "actor_raised"


async def answer(ref: ray.ObjectRef[Any], timeout_s: float | None = None) -> Any:
    """What the call returned. Ray does not try it again, and neither does this.

    Raises:
        PdserveError: the one the method raised, as it is.
        ActorRaised: it raised another one; names it.
        ActorGone: no answer will come.
        TimeoutError: none came in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(ref.future())
    except RayTaskError as error:
        if isinstance(error.cause, PdserveError):
            raise error.cause from None
        raise ActorRaised(f"{type(error.cause).__name__}: {error.cause}") from error
    except RayActorError as error:
        raise ActorGone(_first_line(error)) from error


def _first_line(error: RayActorError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
