"""KV transport ray in a process that is not part of a Ray cluster."""

from __future__ import annotations

import pytest

from kvtransfer.transports.ray import RayDialer, RayListener
from pdserve.errors import ConfigError, PeerUnreachable


async def test_it_is_refused_by_name() -> None:
    async def never(connection: object) -> None:
        raise AssertionError

    with pytest.raises(ConfigError, match="not part of a Ray cluster"):
        await RayListener().start(never)
    with pytest.raises(PeerUnreachable, match="not part of a Ray cluster"):
        await RayDialer().dial("node@127.0.0.1:1")
