"""A whole service tells how KV goes between its workers, before a request and after."""

from __future__ import annotations

from pdserve.public import ClusterStatusView, KvPairView
from router.client import AsyncClient
from support.local_service import inproc_service, local_service
from support.remote_service import status_when


def ways(status: ClusterStatusView) -> dict[tuple[str, str], KvPairView]:
    return {(pair.prefill_worker, pair.decode_worker): pair for pair in status.kv_pairs}


async def test_processes_measure_their_way_before_a_request() -> None:
    async with (
        local_service("--kv-memory=2") as (service, _),  # less than the probe would read
        AsyncClient(service.address.grpc_target) as client,
    ):
        status = await status_when(
            client, lambda seen: any(pair.probe_bytes_per_s for pair in seen.kv_pairs)
        )
        pair = ways(status)["prefill-0", "decode-0"]
        assert (pair.transport, pair.num_reads, pair.num_bytes) == ("shm", 0, 0)
        assert 2**19 < pair.probe_bytes <= 2**20, "half of the pool"
        async for _ in client.generate("hello there", max_tokens=5, ignore_eos=True):
            pass
        status = await status_when(client, lambda seen: seen.kv_pairs[0].num_reads == 1)
        pair = ways(status)["prefill-0", "decode-0"]
        assert pair.num_bytes > 0
        assert pair.probe_bytes_per_s > 0
        await service.stop()


async def test_without_a_probe_the_way_is_told_all_the_same() -> None:
    async with (
        inproc_service("--kv-probe-bytes=0", "--decode-workers=2") as service,
        AsyncClient(service.address.grpc_target) as client,
    ):
        status = await status_when(client, lambda seen: len(seen.kv_pairs) == 2)
        assert set(ways(status)) == {("prefill-0", "decode-0"), ("prefill-0", "decode-1")}
        for pair in status.kv_pairs:
            assert (pair.transport, pair.probe_bytes_per_s) == ("inproc", 0)
