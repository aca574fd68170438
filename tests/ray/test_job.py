"""The job submission of docs/ray.md, through the real dashboard with authentication on."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import openai
import pytest
from ray.job_submission import JobStatus

from cluster.inproc import InprocService
from cluster.spec import Host
from pdserve.clock import MonotonicClock
from pdserve.prepared import PreparedModel
from router.client import AsyncClient
from support.local_service import FREE_PORTS, plan_of
from support.ray_cluster import RayCluster, wait_until
from support.ray_job import submitted
from support.ray_service import assert_nothing_left

pytestmark = [pytest.mark.ray, pytest.mark.model]

PROMPTS = ("Why is the sky blue?", "Name three rivers.")
NUM_TOKENS = 16
CONFIG = "cluster/examples/ray-1p1d.toml"
TINY = ("--kv-memory-mib=64",)
SERVE = ("serve", "--launcher=ray", f"--config={CONFIG}", *FREE_PORTS, *TINY)


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
    plan = plan_of(*TINY).with_model(str(smollm2.folder), "smollm2")
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
    with submitted(cluster, *SERVE, variables={"PDSERVE_CACHE": str(cache_root)}) as job:

        def where() -> tuple[str, str] | None:
            assert job.status() in (JobStatus.PENDING, JobStatus.RUNNING), job.logs()
            said = re.search(r"serving smollm2 .*: (http\S+)/v1 and gRPC (\S+);", job.logs())
            return (said[1], said[2]) if said else None

        await asyncio.to_thread(wait_until, lambda: where() is not None)
        found = where()
        assert found is not None
        assert await answers(*found) == await here(smollm2)
        job.stop()
        await asyncio.to_thread(wait_until, lambda: job.status() is JobStatus.STOPPED)
        assert "\nstopped" in job.logs()
    await asyncio.to_thread(assert_nothing_left, "pdserve")
