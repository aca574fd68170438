"""Ray tests share clusters: a head takes ten seconds of two cores to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.ray_cluster import RayCluster, ray_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """A head with 2 CPUs, authentication on; tests remove the nodes and actors they add."""
    with ray_cluster() as running:
        yield running
