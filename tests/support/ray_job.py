"""This checkout submitted as a Ray job through the dashboard; stopped in the end if it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray.job_submission import JobStatus, JobSubmissionClient

from support.ray_cluster import RayCluster
from support.source_tree import ROOT


class Job:
    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id

    def status(self) -> JobStatus:
        """Raises AssertionError with the log if it failed."""
        status = self._client.get_job_status(self._job_id)
        assert status is not JobStatus.FAILED, self.logs()
        return status

    def logs(self) -> str:
        return str(self._client.get_job_logs(self._job_id))

    def stop(self) -> None:
        self._client.stop_job(self._job_id)


@contextmanager
def submitted(
    cluster: RayCluster, *arguments: str, variables: Mapping[str, str] | None = None
) -> Iterator[Job]:
    """``python -m cluster`` with ``arguments``, from an upload like that of docs/ray.md."""
    client = JobSubmissionClient(cluster.dashboard_url)
    job_id = client.submit_job(
        entrypoint=" ".join([sys.executable, "-m", "cluster", *arguments]),
        runtime_env={
            "working_dir": str(ROOT),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", **(variables or {})},
        },
    )
    try:
        yield Job(client, job_id)
    finally:
        if not client.get_job_status(job_id).is_terminal():
            client.stop_job(job_id)
