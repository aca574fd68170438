"""The cluster that the other tests here share is one, and asks for its token."""

from __future__ import annotations

import httpx
import pytest

from support.ray_cluster import RayCluster

pytestmark = pytest.mark.ray


def test_jobs_are_refused_without_the_token(cluster: RayCluster) -> None:
    answer = httpx.get(f"{cluster.dashboard_url}/api/jobs/")
    assert answer.status_code == httpx.codes.UNAUTHORIZED
