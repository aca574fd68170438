"""``python -m cluster batch`` as Ray jobs: one is stopped on its way, the next goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from ray.job_submission import JobStatus

from support.ray_cluster import RayCluster, wait_until
from support.ray_job import submitted
from support.ray_service import SMALL, assert_nothing_left

pytestmark = pytest.mark.ray

NUM_LINES = 40
NUM_TOKENS = 50
COMMAND = (
    "batch", "--launcher=ray", "--service=batch", "--engine=fake", "--kv-memory=4",
    "--fake-decode-ms=10", "--concurrency=2", *SMALL,
)  # fmt: skip


def write_requests(path: Path) -> None:
    body = {"prompt": "hello", "max_tokens": NUM_TOKENS, "ignore_eos": True}
    lines = [
        json.dumps({"custom_id": f"c{n}", "method": "POST", "url": "/v1/completions", "body": body})
        for n in range(NUM_LINES)
    ]
    path.write_text("\n".join(lines) + "\n")


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


async def test_a_batch_that_was_stopped_goes_on(cluster: RayCluster, tmp_path: Path) -> None:
    source, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    write_requests(source)
    entrypoint = (*COMMAND, f"--input={source}", f"--output={output}")
    with submitted(cluster, *entrypoint) as job:
        await asyncio.to_thread(wait_until, lambda: output.exists() and len(ids_in(output)) >= 4)
        job.stop()
        await asyncio.to_thread(wait_until, lambda: job.status() is JobStatus.STOPPED)
    before = output.read_text()
    assert 4 <= len(ids_in(output)) < NUM_LINES
    await asyncio.to_thread(assert_nothing_left, "batch")
    with submitted(cluster, *entrypoint, "--fake-decode-ms=0") as job:
        await asyncio.to_thread(wait_until, lambda: job.status() is JobStatus.SUCCEEDED)
        assert f"{NUM_LINES} of {NUM_LINES} lines have a result" in job.logs()
    assert output.read_text().startswith(before)
    assert sorted(ids_in(output)) == sorted(f"c{n}" for n in range(NUM_LINES))
    for line in output.read_text().splitlines():
        response = json.loads(line)["response"]
        assert response["status_code"] == 200
        assert response["body"]["usage"]["completion_tokens"] == NUM_TOKENS
    await asyncio.to_thread(assert_nothing_left, "batch")
