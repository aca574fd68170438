"""The job submission of docs/ray.md, through the real dashboard with authentication on."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.inproc import InprocService
from cluster.spec import Host
from pdserve.clock import MonotonicClock
from pdserve.prepared import PreparedModel
from router.client import AsyncClient
from support.local_service import plan_of
from support.ray_cluster import RayCluster, wait_until
from support.ray_service import assert_nothing_left
from support.source_tree import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.model]

PROMPTS = ("Why is the sky blue?", "Name three rivers.")
NUM_TOKENS = 16
CONFIG = "cluster/examples/ray-1p1d.toml"
TINY = "--kv-memory-mib=64"


@contextmanager
def submitted(cluster: RayCluster, cache: Path) -> Iterator[tuple[JobSubmissionClient, str]]:
    """A job of this checkout, running ``python -m cluster serve`` from the upload."""
    client = JobSubmissionClient(cluster.dashboard_url)
    ports = "--http-port=0 --grpc-port=0 --worker-port=0"
    job = client.submit_job(
        entrypoint=f"{sys.executable} -m cluster serve --launcher ray --config {CONFIG} "
        f"{TINY} {ports}",
        runtime_env={
            "working_dir": str(ROOT),
            "excludes": ["tests", ".git", ".venv", "docs"],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", "PDSERVE_CACHE": str(cache)},
        },
    )
    try:
        yield client, job
    finally:
        if client.get_job_status(job) not in (JobStatus.STOPPED, JobStatus.FAILED):
            client.stop_job(job)


async def answers(http_url: str, grpc_target: str) -> list[str]:
    found: list[str] = []
    async with openai.AsyncOpenAI(base_url=f"{http_url}/v1", api_key="none") as by_http:
        for prompt in PROMPTS:
            chat = await by_http.chat.completions.create(
                model="smollm2", messages=[{"role": "user", "content": prompt}],
                max_tokens=NUM_TOKENS, temperature=0.0,
            )  # fmt: skip
            found.append(chat.choices[0].message.content or "")
    async with AsyncClient(grpc_target) as by_grpc:
        for prompt in PROMPTS:
            stream = by_grpc.generate(prompt, max_tokens=NUM_TOKENS, temperature=0.0)
            found.append("".join([delta.text async for delta in stream]))
    return found


async def here(smollm2: PreparedModel) -> list[str]:
    """The same prompts to a service of this process, without Ray."""
    plan = plan_of(TINY).with_model(str(smollm2.folder), "smollm2")
    service = InprocService(
        plan, plan.cluster_spec(Host((0, 1))), clock=MonotonicClock(), say=lambda line: None
    )
    try:
        await service.start()
        return await answers(service.address.http_url, service.address.grpc_target)
    finally:
        await service.kill()


async def test_a_submitted_job_serves_the_model_and_leaves_nothing(
    cluster: RayCluster, smollm2: PreparedModel, cache_root: Path
) -> None:
    def where() -> tuple[str, str] | None:
        said = re.search(r"serving smollm2 .*: (http\S+)/v1 and gRPC (\S+);", logs())
        return (said[1], said[2]) if said else None

    with submitted(cluster, cache_root) as (client, job):

        def logs() -> str:
            text = client.get_job_logs(job)
            assert client.get_job_status(job) is not JobStatus.FAILED, text
            return text

        await asyncio.to_thread(wait_until, lambda: where() is not None)
        found = where()
        assert found is not None
        assert await answers(*found) == await here(smollm2)
        client.stop_job(job)
        await asyncio.to_thread(wait_until, lambda: client.get_job_status(job) is JobStatus.STOPPED)
        assert "\nstopped" in client.get_job_logs(job)
    await asyncio.to_thread(assert_nothing_left, "pdserve")
