"""What clients and dashboards see of the prefix cache: a whole service on the fake engine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from router.client import AsyncClient
from support.local_service import FAKE, inproc_service

PROMPT_IDS = [65 + i % 26 for i in range(100)]
HIT = 96  # whole blocks of 16 of 99 tokens: the last one is always computed


@pytest.mark.parametrize("mode", ["disaggregated", "colocated"])
async def test_hits_are_told_by_http_grpc_and_metrics_and_salts_are_kept_apart(mode: str) -> None:
    async with inproc_service(*FAKE, f"--mode={mode}") as service:
        address = service.address
        base = f"http://{address.host}:{address.http_port}"
        async with (
            httpx.AsyncClient(base_url=base) as http,
            AsyncClient(address.grpc_target) as grpc,
        ):
            assert [await ask_http(http) for _ in range(2)] == [0, HIT]
            assert [await ask_http(http, cache_salt="alice") for _ in range(2)] == [0, HIT]
            assert await ask_grpc(grpc) == HIT
            assert [await ask_grpc(grpc, cache_salt="bob") for _ in range(2)] == [0, HIT]
            assert await ask_http(http, cache_salt="bob") == HIT
            metrics = (await http.get("/metrics")).text
    assert f"pdserve_cached_prompt_tokens_total {5 * HIT:.1f}" in metrics
    moved = 0 if mode == "colocated" else 5 * HIT
    assert f"pdserve_cached_kv_tokens_total {moved:.1f}" in metrics
    assert 'state="cached"' in metrics


@pytest.mark.parametrize("salt", ["", "x" * 257])
async def test_a_salt_that_is_none_or_too_long_is_refused_by_name(salt: str) -> None:
    async with inproc_service(*FAKE) as service:
        address = service.address
        async with httpx.AsyncClient() as http:
            response = await http.post(
                f"http://{address.host}:{address.http_port}/v1/completions",
                json={"prompt": PROMPT_IDS, "cache_salt": salt},
            )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "cache_salt"


async def ask_http(http: httpx.AsyncClient, **fields: Any) -> int:
    body = {"prompt": PROMPT_IDS, "max_tokens": 4, "ignore_eos": True, **fields}
    usage = (await http.post("/v1/completions", json=body)).raise_for_status().json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def ask_grpc(client: AsyncClient, *, cache_salt: str = "") -> int:
    stream = client.generate(
        prompt_ids=PROMPT_IDS, max_tokens=4, ignore_eos=True, cache_salt=cache_salt
    )
    deltas = [delta async for delta in stream]
    usage = deltas[-1].usage
    assert usage is not None
    assert stream.timing is not None
    assert stream.timing.prefill_cached_tokens == usage.num_cached_tokens
    return usage.num_cached_tokens
