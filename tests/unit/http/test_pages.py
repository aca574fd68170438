"""Models, health, readiness, metrics."""

from __future__ import annotations

from pdserve.metrics import WorkerRow
from pdserve.types import Role, WorkerId, WorkerStatus
from router.http.status import ServiceStatus
from support.http_face import http_face
from support.scripted_tokens import script


async def test_models() -> None:
    async with http_face(script("x")) as face:
        listed = (await face.client.get("/v1/models")).json()
        assert listed["object"] == "list"
        [card] = listed["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == ("byte-model", "model", 512)
        assert (await face.client.get("/v1/models/byte-model")).json() == card
        assert (await face.client.get("/v1/models/org/other")).status_code == 404


async def test_health_does_not_depend_on_workers_but_ready_does() -> None:
    status = ServiceStatus(ready=False, problem="no decode worker")
    async with http_face(script("x"), status=status) as face:
        assert (await face.client.get("/health")).status_code == 200
        response = await face.client.get("/ready")
        assert response.status_code == 503
        assert response.json() == {"ready": False, "problem": "no decode worker"}
    async with http_face(script("x")) as face:
        assert (await face.client.get("/ready")).status_code == 200


async def test_metrics_show_requests_and_the_workers_of_the_moment() -> None:
    row = WorkerRow(WorkerId("d0"), Role.DECODE, WorkerStatus(total_blocks=9, free_blocks=4))
    status = ServiceStatus(ready=True, num_queued=2, workers=(row,))
    async with http_face(script("xyz"), status=status) as face:
        await face.chat()
        response = await face.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = response.text.splitlines()
        assert 'pdserve_requests_total{outcome="stop"} 1.0' in lines
        assert "pdserve_generated_tokens_total 4.0" in lines
        assert "pdserve_time_to_first_token_seconds_sum 1.75" in lines
        assert "pdserve_inter_token_latency_seconds_count 3.0" in lines
        assert "pdserve_router_queue_length 2.0" in lines
        assert 'pdserve_worker_blocks{role="decode",state="free",worker="d0"} 4.0' in lines
